package field

import (
	"reflect"
	"strings"
)

// settingNames returns the names of all settings of a struct and those within it.
func settingNames(v any) (names []string) {
	var walk func(reflect.Type)
	walk = func(t reflect.Type) {
		for t.Kind() == reflect.Slice || t.Kind() == reflect.Pointer {
			t = t.Elem()
		}
		if t.Kind() != reflect.Struct {
			return
		}
		for i := range t.NumField() {
			name, rest, _ := strings.Cut(t.Field(i).Tag.Get("yaml"), ",")
			if name != "" && name != "-" {
				names = append(names, name)
			}
			if name != "-" && (name != "" || strings.Contains(rest, "inline")) {
				walk(t.Field(i).Type)
			}
		}
	}
	walk(reflect.TypeOf(v))
	return names
}
