package agent

import "strings"

// lineOf finds the line, counted from 1, on which a TOML file gives a key such as
// model.wire. 0 means that it is not there, or written in a way that is not
// looked for (inline tables, dotted or quoted keys with escapes): a message then
// has to do without.
func lineOf(data []byte, key string) int {
	section, multi, n := "", "", 0
	for line := range strings.Lines(string(data)) {
		n++
		line = strings.TrimSpace(line)
		if multi != "" { // inside a string of several lines
			if strings.Contains(line, multi) {
				multi = ""
			}
			continue
		}
		if name, ok := strings.CutPrefix(line, "["); ok {
			name, _, _ = strings.Cut(name, "]")
			if section = plainKey(name); section == key {
				return n
			}
			continue
		}
		name, value, ok := strings.Cut(line, "=")
		if !ok || strings.HasPrefix(line, "#") {
			continue
		}
		full := plainKey(name)
		if section != "" {
			full = section + "." + full
		}
		if full == key {
			return n
		}
		for _, quote := range []string{`'''`, `"""`} {
			if strings.Count(value, quote) == 1 {
				multi = quote
			}
		}
	}
	return 0
}

func plainKey(s string) string {
	parts := strings.Split(s, ".")
	for i, p := range parts {
		parts[i] = strings.Trim(strings.TrimSpace(p), `"'`)
	}
	return strings.Join(parts, ".")
}
