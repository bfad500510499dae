package lab

import (
	"fmt"
	"strings"
	"unicode/utf8"
)

// Line compares one figure with its target.
type Line struct {
	What   string `json:"what"`
	Figure string `json:"figure"`
	Target string `json:"target,omitempty"`
	Met    bool   `json:"met"`
}

// Table is a list of figures.
type Table []Line

// String writes the table in columns.
func (t Table) String() string {
	rows := [][4]string{{"what", "measured", "target", ""}}
	for _, l := range t {
		met := "ok"
		if !l.Met {
			met = "MISSED"
		}
		if l.Target == "" {
			met = ""
		}
		rows = append(rows, [4]string{l.What, l.Figure, l.Target, met})
	}
	var width [4]int
	for _, r := range rows {
		for i, c := range r {
			width[i] = max(width[i], utf8.RuneCountInString(c))
		}
	}
	var b strings.Builder
	for _, r := range rows {
		line := ""
		for i, c := range r {
			line += fmt.Sprintf("%-*s  ", width[i], c)
		}
		b.WriteString(strings.TrimRight(line, " ") + "\n")
	}
	return b.String()
}
