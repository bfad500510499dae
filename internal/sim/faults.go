package sim

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"time"

	"gastown/internal/errs"
)

// Kind is a kind of fault, by its name.
type Kind string

// kind describes one kind of fault.
type kind struct {
	name Kind
	p    float64 // of one opportunity
	help string
}

// kinds are all faults that exist.
var kinds = []kind{
	{"crash", 0.0002, "the server dies between two steps"},
	{"crash-in-call", 0.0002, "the server dies before or after a call to the store, the driver or git"},
	{"outage", 0.15, "after a crash nobody starts the server again for hours"},
	{"two-servers", 0.34, "two servers on one store, for the whole run"},

	{"clock-step", 0.25, "the server's clock is set, by up to an hour either way"},
	{"clock-wrong", 0.1, "a server starts with a clock that is up to an hour wrong"},
	{"machine-sleeps", 0.6, "the whole machine sleeps for up to 4 hours; sometimes a person types before anything else runs"},

	{"commit-refused", 0.002, "a commit fails and nothing happened"},
	{"commit-lost", 0.002, "the outcome of a commit is unknown, and it did not happen"},
	{"commit-unknown", 0.002, "the outcome of a commit is unknown, and it did happen"},
	{"write-refused", 0.002, "another write (claim, slot, new town) fails and nothing happened"},
	{"write-unknown", 0.002, "another write (claim, slot, new town) happened and its outcome is unknown"},
	{"read-failed", 0.001, "a read of the store fails"},
	{"lookup-failed", 0.2, "the look-up of a commit whose outcome is unknown fails"},
	{"disk-full", 0.01, "the store takes no writes for up to an hour"},

	{"slow-task", 0.01, "something that the server does beside the rest begins up to 10 seconds late"},
	{"slow-call", 0.002, "a call to the store, the driver or git takes up to 10 seconds"},
	{"effect-slow", 0.01, "an effect begins up to 4 minutes late"},
	{"effect-failed", 0.01, "an effect fails and nothing happened"},
	{"effect-unknown", 0.005, "an effect fails and happened"},
	{"effect-forgotten", 0.004, "an effect is claimed and never performed, until its time is over"},
	{"effect-twice", 0.01, "an effect happens again, up to an hour later, and nobody hears of it"},
	{"effect-late", 0.004, "the outcome of an effect arrives after its claim ran out"},

	{"message-lost", 0.01, "a message of the runner is lost"},
	{"answer-lost", 0.01, "an answer to the runner is lost"},
	{"message-repeated", 0.01, "a message of the runner arrives twice"},
	{"message-late", 0.03, "a copy of a message arrives up to 3 hours later, among newer ones"},
	{"message-forged", 0.02, "a message carries another epoch, generation or number"},
	{"command-answer-lost", 0.02, "the answer to a person is lost; the command is repeated with its key"},
	{"command-doubled", 0.05, "a command arrives a second time while the first is being handled"},
	{"command-repeated", 0.02, "a command arrives twice with one key, now or much later"},

	{"sandbox-dies", 0.02, "a sandbox dies"},
	{"disk-lost", 0.3, "a sandbox that died leaves no disk"},
	{"sandbox-freezes", 0.015, "a sandbox runs and says nothing any more"},
	{"sandbox-mute", 0.03, "a sandbox starts and never speaks"},
	{"agent-not-started", 0.02, "an agent can't be started"},
	{"agent-killed", 0.02, "an agent is killed from outside"},
	{"agent-stuck", 0.02, "an agent shows no sign of life"},
	{"agent-deaf", 0.02, "an agent does not stop when told to"},
	{"agent-escalates", 0.02, "an agent asks for a person"},
	{"provider-limited", 0.015, "the model provider refuses requests for seconds or for hours"},
	{"usage-repeated", 0.03, "the gateway's word of what an answer used arrives again, at once or up to 3 hours later"},
	{"settled-late", 0.02, "what was used of a block of a budget is told when the block runs out, or has run out"},
	{"gates-broken", 0.04, "gates can't be run"},

	{"git-down", 0.02, "the remote can't be reached for hours"},
	{"target-moved", 0.05, "others push to the target while the server lands on it"},
	{"target-rewound", 0.04, "others force the target back by some commits"},
	{"notify-down", 0.05, "nobody takes notices"},
}

// Kinds lists the names of all faults with what they do.
func Kinds() (names []Kind, help map[Kind]string) {
	help = map[Kind]string{}
	for _, k := range kinds {
		names = append(names, k.name)
		help[k.name] = k.help
	}
	return names, help
}

// ParseKinds reads "all", "none" or names separated by commas.
func ParseKinds(s string) ([]Kind, error) {
	names, _ := Kinds()
	switch s {
	case "all":
		return names, nil
	case "none", "":
		return []Kind{}, nil
	}
	var out []Kind
	for part := range strings.SplitSeq(s, ",") {
		k := Kind(strings.TrimSpace(part))
		if !slices.Contains(names, k) {
			all := make([]string, len(names))
			for i, n := range names {
				all[i] = string(n)
			}
			return nil, errs.New(errs.Invalid, "there is no fault called %q", k).WithHint("all, none, or some of: %s", strings.Join(all, ", "))
		}
		out = append(out, k)
	}
	return out, nil
}

// Injection is one fault that happened: its kind, whom it struck (0: the server
// or the whole world, else the number of a town, from 1), when in virtual time
// since the begin, and the how manieth opportunity at that time it was.
type Injection struct {
	Kind Kind
	Who  int
	At   time.Duration
	N    int
}

// String is how an injection is written: kind[:town]@milliseconds[.n].
func (i Injection) String() string {
	var b strings.Builder
	b.WriteString(string(i.Kind))
	if i.Who != 0 {
		fmt.Fprintf(&b, ":%d", i.Who)
	}
	fmt.Fprintf(&b, "@%d", i.At.Milliseconds())
	if i.N != 1 {
		fmt.Fprintf(&b, ".%d", i.N)
	}
	return b.String()
}

// ParseInjections reads injections separated by commas.
func ParseInjections(s string) (out []Injection, err error) {
	names, _ := Kinds()
	for part := range strings.SplitSeq(s, ",") {
		if part = strings.TrimSpace(part); part == "" {
			continue
		}
		subject, when, ok := strings.Cut(part, "@")
		name, who, hasWho := strings.Cut(subject, ":")
		ms, n, hasN := strings.Cut(when, ".")
		i := Injection{Kind: Kind(name), N: 1}
		var bad error
		number := func(s string, least int64) int64 {
			v, err := strconv.ParseInt(s, 10, 48)
			if err != nil || v < least {
				bad = errs.New(errs.Invalid, "%q is no fault of a replay", part).WithHint("copy the list that the failing run printed: kind[:town]@milliseconds[.n], separated by commas")
			}
			return v
		}
		if i.At = time.Duration(number(ms, 0)) * time.Millisecond; hasWho {
			i.Who = int(number(who, 1))
		}
		if hasN {
			i.N = int(number(n, 1))
		}
		if !ok || !slices.Contains(names, i.Kind) {
			number("", 0)
		}
		if bad != nil {
			return nil, bad
		}
		out = append(out, i)
	}
	return out, nil
}

func (i Injection) before(at time.Duration, n int) bool { return i.At < at || i.At == at && i.N <= n }

// subject is one kind of fault and one that it may strike.
type subject struct {
	kind Kind
	who  int
}

// chances counts the opportunities of one subject at one time, and in a replay
// holds the faults to come.
type chances struct {
	at   time.Time
	n    int
	key  uint64
	p    float64
	only []Injection
}

// storm decides about all faults of a run.
type storm struct {
	w       *world
	allowed map[Kind]float64
	replay  bool
	by      map[subject]*chances
	only    map[subject][]Injection
	done    []Injection
	count   map[Kind]int64
	last    *rand.Rand // of the extent of the latest fault
}

func newStorm(w *world, o Options) *storm {
	s := &storm{w: w, allowed: map[Kind]float64{}, by: map[subject]*chances{}, only: map[subject][]Injection{}, count: map[Kind]int64{}, replay: o.Only != nil}
	for _, k := range kinds {
		if o.Faults == nil || slices.Contains(o.Faults, k.name) {
			s.allowed[k.name] = k.p
		}
	}
	for _, i := range o.Only {
		k := subject{i.Kind, i.Who}
		s.only[k] = append(s.only[k], i)
	}
	for _, l := range s.only {
		slices.SortFunc(l, func(a, b Injection) int { return cmp.Or(cmp.Compare(a.At, b.At), cmp.Compare(a.N, b.N)) })
	}
	return s
}

// fault decides whether a fault strikes now. In a replay each chosen one strikes
// at the first opportunity at or after its time.
func (w *world) fault(k Kind, who int) bool {
	s := w.storm
	if !w.restless {
		return false
	}
	key := subject{k, who}
	c := s.by[key]
	if c == nil {
		c = &chances{key: keyOf(w.opt.Seed, fmt.Sprint("fault ", k, who)), p: s.allowed[k], only: s.only[key]}
		s.by[key] = c
	}
	if c.p == 0 && !s.replay || s.replay && len(c.only) == 0 {
		return false
	}
	if !w.now.Equal(c.at) {
		c.at, c.n = w.now, 0
	}
	c.n++
	i := Injection{Kind: k, Who: who, At: w.now.Sub(w.start), N: c.n}
	if s.replay {
		if !c.only[0].before(i.At, i.N) {
			return false
		}
		i = c.only[0]
		c.only = c.only[1:]
	} else if float64(mix(mix(c.key^uint64(i.At))+uint64(i.N)*0x9e3779b97f4a7c15)>>11)/(1<<53) >= c.p {
		return false
	}
	s.done = append(s.done, i)
	s.count[k]++
	s.last = rand.New(rand.NewPCG(c.key, uint64(i.At)<<12+uint64(i.N)))
	return true
}

// extent is how long or how much the fault that just struck is.
func (w *world) extent(lo, hi time.Duration) time.Duration {
	return dice{w.storm.last}.between(lo, hi)
}
