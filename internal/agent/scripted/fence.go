package scripted

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// Ways for a block to end, given as its end attribute.
const (
	EndDone     = "done"
	EndNoChange = "no_change"
	EndEscalate = "escalate"
	EndNone     = "none"  // the turn ends without a call
	EndCrash    = "crash" // the agent exits with code 3
	EndHang     = "hang"  // the turn lasts until it is cancelled
)

// Block is a fenced block of shell in a bead's body.
type Block struct {
	Script  string
	Attempt int    // 0: any attempt
	Nudge   int    // -1: any
	End     string // one of the End constants
	Line    int    // of the opening fence, from 1
}

// Blocks returns the ```sh blocks of a Markdown text. Fences are three or more
// backticks, indented by at most three spaces; ~~~ is not a fence here. Blocks
// of other languages are skipped, whatever they contain. A block that never
// ends, or an attribute that makes no sense, is an error that says where.
func Blocks(body string) ([]Block, error) {
	var out []Block
	var script strings.Builder
	var open *Block // the block that is being read, Script empty
	fence, sh := 0, false
	n := 0
	for line := range strings.Lines(body) {
		n++
		ticks, info := fenceLine(line)
		switch {
		case open == nil && ticks >= 3 && !strings.Contains(info, "`"):
			b, isShell, err := parseInfo(info, n)
			if err != nil {
				return nil, err
			}
			open, fence, sh = &b, ticks, isShell
			script.Reset()
		case open != nil && ticks >= fence && info == "":
			if sh {
				open.Script = script.String()
				out = append(out, *open)
			}
			open = nil
		case open != nil:
			script.WriteString(line)
		}
	}
	if open != nil {
		return nil, fmt.Errorf("line %d: the block that starts here never ends: put a line of %s after it", open.Line, strings.Repeat("`", min(fence, 40)))
	}
	return out, nil
}

// fenceLine returns how many backticks start the line, and what follows them.
func fenceLine(line string) (ticks int, info string) {
	line = strings.TrimRight(line, "\r\n")
	trimmed := strings.TrimLeft(line, " ")
	if len(line)-len(trimmed) > 3 {
		return 0, ""
	}
	rest := strings.TrimLeft(trimmed, "`")
	return len(trimmed) - len(rest), strings.TrimSpace(rest)
}

// parseInfo reads what follows the opening fence: a language, then key=value.
func parseInfo(info string, line int) (b Block, shell bool, err error) {
	b = Block{Nudge: -1, End: EndDone, Line: line}
	words := strings.Fields(info)
	if len(words) == 0 || words[0] != "sh" {
		return b, false, nil
	}
	for _, w := range words[1:] {
		key, val, ok := strings.Cut(w, "=")
		switch {
		case !ok:
			err = fmt.Errorf("%q is not key=value", short(w))
		case key == "attempt":
			b.Attempt, err = number(key, val, 1)
		case key == "nudge":
			b.Nudge, err = number(key, val, 0)
		case key == "end":
			ends := []string{EndDone, EndNoChange, EndEscalate, EndNone, EndCrash, EndHang}
			if b.End = val; !slices.Contains(ends, val) {
				err = fmt.Errorf("end=%s: there are %s", short(val), strings.Join(ends, ", "))
			}
		default:
			err = fmt.Errorf("unknown attribute %q: there are attempt, nudge, end", short(key))
		}
		if err != nil {
			return b, true, fmt.Errorf("line %d: %w", line, err)
		}
	}
	return b, true, nil
}

func number(key, val string, least int) (int, error) {
	n, err := strconv.Atoi(val)
	if err != nil || n < least || n > 1_000_000 {
		return 0, fmt.Errorf("%s=%s: not a number from %d on", key, short(val), least)
	}
	return n, nil
}

func short(s string) string {
	if len(s) > 40 {
		return strings.ToValidUTF8(s[:40], "") + "…"
	}
	return s
}

// Choose returns the block for an attempt (from 1) and a nudge (0 for the
// first turn): the first of those that name the nudge, else of those that name
// the attempt, else of the plain ones. A bead without any of these repeats its
// first block that names no nudge, though it names another attempt.
func Choose(blocks []Block, attempt, nudge int) (Block, bool) {
	best, score := Block{}, -1
	for _, b := range blocks {
		s := 0
		if b.Attempt != 0 {
			if b.Attempt != attempt {
				continue
			}
			s++
		}
		if b.Nudge >= 0 {
			if b.Nudge != nudge {
				continue
			}
			s += 2
		}
		if s > score {
			best, score = b, s
		}
	}
	if score < 0 {
		if i := slices.IndexFunc(blocks, func(b Block) bool { return b.Nudge < 0 }); i >= 0 {
			return blocks[i], true
		}
	}
	return best, score >= 0
}
