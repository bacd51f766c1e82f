package config

import (
	"reflect"
	"slices"
	"strings"

	"github.com/coatcheck/coatcheck"
)

// fixed are the settings that a node goes by for as long as it runs: with others it would be
// another node, or have other sessions. What lies below one of them is fixed too.
var fixed = []string{
	"node", "listen", "public_url", "insecure_http", "admin", "keys", "store", "cache",
	"session.cookie", "limits.header_bytes", "timeouts",
}

// Changes returns the settings that next has other values for, as paths in the file in its
// order: session.idle_timeout, routes[1].allow.groups. A list that has become longer or
// shorter is one setting. A secret goes by the name of the file or variable that holds it.
func (c *Config) Changes(next *Config) []string {
	list := changes(nil, "", reflect.ValueOf(c).Elem(), reflect.ValueOf(next).Elem())
	if c.namedByHost && next.namedByHost { // that the host has another name now is no setting
		list = slices.DeleteFunc(list, func(setting string) bool { return setting == "node" })
	}
	return list
}

func changes(list []string, path string, a, b reflect.Value) []string {
	for f := range fields(a.Type()) {
		name, was, is := path+f.name, a.FieldByIndex(f.Index), b.FieldByIndex(f.Index)
		switch {
		case structOf(f.Type) == nil:
			if reflect.DeepEqual(was.Interface(), is.Interface()) {
				continue
			}
			if f.Type == reflect.TypeFor[coatcheck.Secret]() {
				name += "_env"
				if b.FieldByName(f.Name+"File").String() != "" {
					name = path + f.name + "_file"
				}
			}
			list = append(list, name)
		case was.Kind() == reflect.Struct:
			list = changes(list, name+".", was, is)
		case was.Len() != is.Len():
			list = append(list, name)
		default:
			for i := range was.Len() {
				list = changes(list, element(name, i)+".", was.Index(i), is.Index(i))
			}
		}
	}
	return list
}

// Fixed returns those of the settings that can't change while a node runs.
func Fixed(settings []string) (list []string) {
	for _, s := range settings {
		for _, f := range fixed {
			if s == f || strings.HasPrefix(s, f+".") {
				list = append(list, s)
			}
		}
	}
	return list
}
