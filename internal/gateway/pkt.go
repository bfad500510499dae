package gateway

import (
	"bytes"
	"fmt"
	"io"
	"strings"

	"gastown/internal/errs"
	"gastown/internal/git"
)

// maxPkt is git's limit for one pkt-line, its length field included.
const maxPkt = 65520

// zeroOID stands for "no object" in a command: a creation or a deletion.
const zeroOID = "0000000000000000000000000000000000000000"

// readPkt reads one pkt-line. A flush gives flush and no payload; the special
// packets of protocol v2, which have no place in a push, are errors.
func readPkt(r io.Reader) (payload []byte, flush bool, err error) {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, false, errs.New(errs.Invalid, "the push ends in the middle of its commands")
	}
	n := 0
	for _, c := range head {
		d := strings.IndexByte("0123456789abcdef", c|0x20)
		if d < 0 || c < '0' {
			return nil, false, errs.New(errs.Invalid, "the push has a line whose length is not hexadecimal")
		}
		n = n<<4 | d
	}
	switch {
	case n == 0:
		return nil, true, nil
	case n < 4 || n > maxPkt:
		return nil, false, errs.New(errs.Invalid, "the push has a line of impossible length %d", n)
	}
	payload = make([]byte, n-4)
	if _, err := io.ReadFull(r, payload); err != nil {
		return nil, false, errs.New(errs.Invalid, "the push ends in the middle of its commands")
	}
	return payload, false, nil
}

// pkt frames a payload, which must fit.
func pkt(payload string) string { return fmt.Sprintf("%04x%s", len(payload)+4, payload) }

const flushPkt = "0000"

// command is one reference update of a push.
type command struct{ Old, New, Ref string }

func (c command) deletes() bool { return c.New == zeroOID }

// commandList is what a push sends before its pack.
type commandList struct {
	Shallow  []string // ids of shallow commits
	Commands []command
	Caps     map[string]bool // capabilities without their values
}

// commandLimits bounds what readCommands takes.
type commandLimits struct{ Commands, Shallow int }

// readCommands parses the command list up to its flush, and reads no byte more.
// An empty list (a client's probe) is no error. It refuses what this gateway does not
// speak: signed pushes, push options, other hashes.
func readCommands(r io.Reader, lim commandLimits) (commandList, error) {
	list := commandList{Caps: map[string]bool{}}
	for {
		line, flush, err := readPkt(r)
		if err != nil {
			return list, err
		}
		if flush {
			return list, list.checkTwice()
		}
		if id, ok := bytes.CutPrefix(line, []byte("shallow ")); ok {
			id := strings.TrimSuffix(string(id), "\n")
			if err := git.ValidOID(id); err != nil {
				return list, err
			}
			if list.Shallow = append(list.Shallow, id); len(list.Shallow) > lim.Shallow {
				return list, errs.New(errs.Invalid, "the push names more than %d shallow commits", lim.Shallow)
			}
			continue
		}
		if bytes.HasPrefix(line, []byte("push-cert")) {
			return list, errs.New(errs.Invalid, "signed pushes are not taken here").WithHint("push with --no-signed")
		}
		cmd, caps, hasCaps := strings.Cut(string(line), "\x00")
		if hasCaps {
			if len(list.Commands) > 0 {
				return list, errs.New(errs.Invalid, "the push has capabilities after its first command")
			}
			if err := list.readCaps(caps); err != nil {
				return list, err
			}
		}
		c, err := parseCommand(cmd)
		if err != nil {
			return list, err
		}
		if list.Commands = append(list.Commands, c); len(list.Commands) > lim.Commands {
			return list, errs.New(errs.Invalid, "the push updates more than %d references", lim.Commands)
		}
	}
}

func parseCommand(line string) (command, error) {
	old, rest, ok1 := strings.Cut(strings.TrimSuffix(line, "\n"), " ")
	id, ref, ok2 := strings.Cut(rest, " ")
	if !ok1 || !ok2 || git.ValidOID(old) != nil || git.ValidOID(id) != nil {
		return command{}, errs.New(errs.Invalid, "the push has a command that is not \"old new ref\"")
	}
	if err := git.ValidRef(ref); err != nil {
		return command{}, err
	}
	return command{Old: old, New: id, Ref: ref}, nil
}

func (l *commandList) readCaps(s string) error {
	for c := range strings.FieldsSeq(s) {
		name, value, _ := strings.Cut(c, "=")
		switch {
		case name == "push-options":
			return errs.New(errs.Invalid, "push options are not taken here").WithHint("push without --push-option")
		case name == "push-cert":
			return errs.New(errs.Invalid, "signed pushes are not taken here").WithHint("push with --no-signed")
		case name == "object-format" && value != "sha1":
			return errs.New(errs.Invalid, "the repository uses SHA-1 object ids")
		}
		l.Caps[name] = true
	}
	return nil
}

func (l *commandList) checkTwice() error {
	seen := map[string]bool{}
	for _, c := range l.Commands {
		if seen[c.Ref] {
			return errs.New(errs.Invalid, "the push updates %s twice", c.Ref)
		}
		seen[c.Ref] = true
	}
	return nil
}

// encode writes the list anew for receive-pack: only what was understood, and
// always atomic.
func (l *commandList) encode() []byte {
	var b bytes.Buffer
	for _, s := range l.Shallow {
		b.WriteString(pkt("shallow " + s))
	}
	for i, c := range l.Commands {
		line := c.Old + " " + c.New + " " + c.Ref
		if i == 0 {
			line += "\x00 atomic object-format=sha1"
			for _, name := range []string{"report-status", "report-status-v2", "side-band-64k", "quiet", "ofs-delta"} {
				if l.Caps[name] {
					line += " " + name
				}
			}
		}
		b.WriteString(pkt(line))
	}
	b.WriteString(flushPkt)
	return b.Bytes()
}

// refusal is the answer to a push that runs nothing: every command is refused,
// for its own reason or that of the others, and message is shown to the user.
func (l *commandList) refusal(reasons map[string]string, message string) []byte {
	var report strings.Builder
	report.WriteString(pkt("unpack ok\n"))
	for _, c := range l.Commands {
		why := reasons[c.Ref]
		if why == "" {
			why = "refused with the rest of this push"
		}
		report.WriteString(pkt("ng " + c.Ref + " " + oneLine(why) + "\n"))
	}
	report.WriteString(flushPkt)

	reports := l.Caps["report-status"] || l.Caps["report-status-v2"]
	if !l.Caps["side-band-64k"] {
		if reports {
			return []byte(report.String())
		}
		return nil
	}
	var b bytes.Buffer
	band(&b, 2, message+"\n")
	if reports {
		band(&b, 1, report.String())
	}
	b.WriteString(flushPkt)
	return b.Bytes()
}

// band writes data on a sideband channel, in pieces that fit.
func band(b *bytes.Buffer, channel byte, data string) {
	for len(data) > 0 {
		n := min(len(data), maxPkt-5)
		b.WriteString(pkt(string(channel) + data[:n]))
		data = data[n:]
	}
}

// oneLine keeps a reason from breaking the report: no control characters, bounded.
func oneLine(s string) string {
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(s, "?"))
	if len(s) > 500 {
		s = strings.ToValidUTF8(s[:500], "") + "…"
	}
	return s
}
