package config

import (
	"reflect"
	"strings"
)

// fixed are the settings that a node goes by for as long as it runs: with others it would be
// another node, or have other sessions. What lies below one of them is fixed too.
var fixed = []string{
	"node", "listen", "public_url", "insecure_http", "admin", "keys", "store", "cache",
	"session.cookie", "limits.header_bytes", "timeouts",
}

// Changes returns the settings that next has other values for, as paths in the file in its
// order: session.idle_timeout. A list, like routes, is one setting.
func (c *Config) Changes(next *Config) []string {
	return changes(nil, "", reflect.ValueOf(c).Elem(), reflect.ValueOf(next).Elem())
}

func changes(list []string, path string, a, b reflect.Value) []string {
	for i := range a.NumField() {
		name, _, _ := strings.Cut(a.Type().Field(i).Tag.Get("yaml"), ",")
		if name == "" { // not a setting
			continue
		}
		if a, b := a.Field(i), b.Field(i); a.Kind() == reflect.Struct {
			list = changes(list, path+name+".", a, b)
		} else if !reflect.DeepEqual(a.Interface(), b.Interface()) {
			list = append(list, path+name)
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
