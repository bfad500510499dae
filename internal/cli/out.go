package cli

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"

	"github.com/mattn/go-isatty"
)

func isTerminal(f *os.File) bool { return isatty.IsTerminal(f.Fd()) }

// printJSON prints one value, indented. HTML characters stay as they are: the
// output is for people and programs, not for pages.
func (a *invocation) printJSON(v any) error {
	b, err := encodeJSON(v, "  ")
	if err != nil {
		return err
	}
	_, err = a.env.Out.Write(b)
	return err
}

// printLine prints one value on one line.
func (a *invocation) printLine(v any) error {
	b, err := encodeJSON(v, "")
	if err != nil {
		return err
	}
	_, err = a.env.Out.Write(b)
	return err
}

func encodeJSON(v any, indent string) ([]byte, error) {
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", indent)
	err := enc.Encode(v)
	return harmless(buf.Bytes()), err
}

// harmless escapes what encoding/json leaves as it is and a terminal may obey:
// the other control characters, and those that change the direction of text. In
// JSON they can only be within strings.
func harmless(b []byte) []byte {
	if !bytes.ContainsFunc(b, commands) {
		return b
	}
	var out bytes.Buffer
	for _, r := range string(b) {
		if commands(r) {
			fmt.Fprintf(&out, `\u%04x`, r)
		} else {
			out.WriteRune(r)
		}
	}
	return out.Bytes()
}

// commands reports whether a terminal may obey a character instead of showing it.
func commands(r rune) bool {
	return unicode.IsControl(r) && r != '\n' && r != '\t' || r >= 0x202a && r <= 0x202e || r >= 0x2066 && r <= 0x2069
}

// say prints a line of text to stdout.
func (a *invocation) say(format string, args ...any) error {
	_, err := fmt.Fprintf(a.env.Out, format+"\n", args...)
	return err
}

// table prints rows under a header, or the text for none on stderr.
func (a *invocation) table(none string, header []string, rows [][]string) error {
	if len(rows) == 0 {
		_, err := fmt.Fprintln(a.env.Err, none)
		return err
	}
	w := tabwriter.NewWriter(a.env.Out, 0, 8, 2, ' ', 0)
	fmt.Fprintln(w, strings.Join(header, "\t"))
	for _, r := range rows {
		for i := range r {
			if r[i] = cell(r[i]); r[i] == "" {
				r[i] = "-"
			}
		}
		fmt.Fprintln(w, strings.Join(r, "\t"))
	}
	return w.Flush()
}

// fields prints names and values below each other, without those that are empty.
func (a *invocation) fields(pairs ...string) error {
	w := tabwriter.NewWriter(a.env.Out, 0, 8, 2, ' ', 0)
	for i := 0; i+1 < len(pairs); i += 2 {
		if pairs[i+1] != "" {
			fmt.Fprintf(w, "%s\t%s\n", pairs[i], cell(pairs[i+1]))
		}
	}
	return w.Flush()
}

// cell is clean on one line.
func cell(s string) string { return strings.Join(strings.Fields(clean(s)), " ") }

// clean replaces control characters but line ends and tabs, and those that
// change the direction of text, in what strangers wrote.
func clean(s string) string {
	s = strings.ReplaceAll(strings.ToValidUTF8(s, "�"), "\r\n", "\n")
	return strings.Map(func(r rune) rune {
		if commands(r) {
			return '�'
		}
		return r
	}, s)
}

// clip shortens a text to n characters of one line.
func clip(s string, n int) string {
	s = cell(s)
	if r := []rune(s); len(r) > n {
		return string(r[:n-1]) + "…"
	}
	return s
}

// ago says how long ago a time was, or in how long it will be; "" for none.
func (a *invocation) ago(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	d := a.env.Now().Sub(t)
	switch {
	case d < -time.Second:
		return "in " + span(-d)
	case d < time.Second:
		return "now"
	}
	return span(d) + " ago"
}

// span writes a duration with its largest unit, or two where that says more.
func span(d time.Duration) string {
	switch {
	case d < time.Second:
		return fmt.Sprintf("%dms", d.Milliseconds())
	case d < 10*time.Second:
		return fmt.Sprintf("%.1fs", d.Seconds())
	case d < time.Minute:
		return fmt.Sprintf("%ds", int(d.Seconds()))
	case d < time.Hour:
		return fmt.Sprintf("%dm", int(d.Minutes()))
	case d < 24*time.Hour:
		return fmt.Sprintf("%dh%02dm", int(d.Hours()), int(d.Minutes())%60)
	}
	return fmt.Sprintf("%dd%02dh", int(d.Hours())/24, int(d.Hours())%24)
}

// commit shortens a commit id.
func commit(s string) string { return s[:min(len(s), 10)] }

// style is a colour or weight of the terminal.
type style string

const (
	bold   style = "1"
	dim    style = "2"
	red    style = "31"
	green  style = "32"
	yellow style = "33"
	cyan   style = "36"
)

// paint colours text when stdout is a terminal and NO_COLOR is not set.
func (a *invocation) paint(s style, text string) string {
	if !a.env.Terminal || a.env.Getenv("NO_COLOR") != "" || a.env.Getenv("TERM") == "dumb" || text == "" {
		return text
	}
	return "\x1b[" + string(s) + "m" + text + "\x1b[0m"
}

// statusStyle is the colour of a bead's status.
func statusStyle(status string) style {
	switch status {
	case "closed":
		return green
	case "failed":
		return red
	case "cancelled":
		return dim
	case "in_progress", "in_review":
		return cyan
	}
	return bold
}
