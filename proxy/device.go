package proxy

import (
	"cmp"
	"strings"
)

// A mark is a part of a User-Agent that gives away what sent it, and the name that people
// have for that.
type mark struct{ part, name string }

// Browsers pretend to be others, so each stands before those that it pretends to be.
var browserMarks = []mark{
	{"Edg/", "Edge"},
	{"EdgA/", "Edge"},
	{"EdgiOS/", "Edge"},
	{"OPR/", "Opera"},
	{"SamsungBrowser/", "Samsung Internet"},
	{"Vivaldi/", "Vivaldi"},
	{"Firefox/", "Firefox"},
	{"FxiOS/", "Firefox"},
	{"CriOS/", "Chrome"},
	{"HeadlessChrome/", "Chrome"},
	{"Chrome/", "Chrome"},
	{"Safari/", "Safari"},
	{"curl/", "curl"},
}

var systemMarks = []mark{
	{"iPhone", "iPhone"},
	{"iPad", "iPad"},
	{"Android", "Android"},
	{"CrOS", "ChromeOS"},
	{"Windows", "Windows"},
	{"Mac OS X", "Mac"},
	{"Macintosh", "Mac"},
	{"Linux", "Linux"},
}

// Device says in people's words what a User-Agent stands for. It is a hint and no more:
// everybody can send any.
func Device(userAgent string) string {
	browser, system := find(browserMarks, userAgent), find(systemMarks, userAgent)
	switch {
	case browser != "" && system != "":
		return browser + " on " + system
	case browser != "" || system != "":
		return browser + system
	}
	const most = 60
	text := []rune(legible(strings.TrimSpace(userAgent)))
	if len(text) > most {
		text = append(text[:most-1], '…')
	}
	return cmp.Or(string(text), "Unknown browser")
}

func find(marks []mark, userAgent string) string {
	for _, m := range marks {
		if strings.Contains(userAgent, m.part) {
			return m.name
		}
	}
	return ""
}
