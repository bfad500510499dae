package town

import (
	"cmp"
	"maps"
	"slices"

	"gastown/internal/errs"
)

// Info is the town's own row.
type Info struct {
	ID        string   `json:"id"`
	Name      string   `json:"name"`
	Owner     string   `json:"owner"` // the town itself when nobody else is
	CreatedAt Time     `json:"created_at"`
	Mode      Mode     `json:"mode"`
	ModeBy    string   `json:"mode_by,omitempty"`
	ModeAt    Time     `json:"mode_at,omitempty"`
	Settings  Settings `json:"settings,omitempty"`
	AwakeFor  Time     `json:"awake_for,omitempty"` // human hold: keep awake until then
	AwakeFrom Time     `json:"awake_from,omitempty"`
	AwakeBy   string   `json:"awake_by,omitempty"`
	Removed   bool     `json:"removed,omitempty"` // disks and repositories of a deleting town are gone
	Import    *Import  `json:"import,omitempty"`  // while Mode is importing

	Sandbox Sandbox `json:"sandbox"`
	Meter   Meter   `json:"meter"`

	DesiredRev  int64  `json:"desired_rev"`
	DesiredHash string `json:"desired_hash,omitempty"`
	LedgerSeq   int64  `json:"ledger_seq"`
	LedgerLost  int64  `json:"ledger_lost,omitempty"` // entries that were lost, as a person knows
	ClaimSeq    int64  `json:"claim_seq"`
	NoticeSeq   int64  `json:"notice_seq"`
	// EscalationSeq numbers escalations.
	EscalationSeq int64 `json:"escalation_seq,omitempty"`
	// Poison is what sandboxes sent and could not be taken, PoisonN how many.
	Poison  []Poison `json:"poison,omitempty"`
	PoisonN int64    `json:"poison_n,omitempty"`
	// Blocks are granted to runs and not settled.
	Blocks []Block `json:"blocks,omitempty"`
	// Told says by scope of which budget's end people were told.
	Told map[string]string `json:"told,omitempty"`
	// Missing says by preset which agents were not there when a sandbox should start them.
	Missing map[string]Missing `json:"missing,omitempty"`
	Busy    bool               `json:"busy,omitempty"` // had beads that were not terminal since it last finished its work
}

// Town is the state of one town. Make one with New or Decode.
type Town struct {
	info     Info
	server   Settings // the server's defaults; not part of the state
	offers   *Offers  // what the server has for agents; not part of the state, nil when nothing is known
	rigs     map[string]*Rig
	beads    map[string]*Bead
	runs     map[string]*Run
	agents   map[string]*Agent
	claims   map[string]*Claim
	breakers map[string]*Breaker
	notices  map[int64]*Notice
	usage    map[string]*Usage // by day

	escalations map[string]*Escalation
	serverDay   DaySpend           // what all towns spent today; not part of the state
	delta       map[string]Spend   // by day: spent since the last TakeSpend
	lent        map[string]Granted // likewise: granted, less what was settled
	limits      map[string]Spend   // budgets of the town, the server and rigs, until a setting changes

	ix      index
	dirty   map[rowKey]struct{}
	entries []Entry
	bad     []Quarantined
	raw     map[rowKey][]byte // what the store has of the rows in bad
	odd     map[rowKey]string // loaded rows that contradict others, and how
}

// Entry is one line of the ledger: what happened, to what, and who did it.
type Entry struct {
	Seq     int64             `json:"seq"`
	At      Time              `json:"at"`
	Kind    string            `json:"kind"`
	Subject string            `json:"subject,omitempty"` // bead, run, rig or town
	Actor   string            `json:"actor,omitempty"`   // a person, an agent, or "town" for its rules
	Text    string            `json:"text,omitempty"`
	Data    map[string]string `json:"data,omitempty"`
}

// New makes an empty town. The name must be valid (ValidName); an empty owner
// means the town itself.
func New(id, name, owner string, now Time) *Town {
	t := empty()
	t.info = Info{ID: id, Name: name, Owner: cmp.Or(owner, id), CreatedAt: now, Mode: ModeActive,
		Sandbox: Sandbox{State: SandboxAsleep, Since: now}, DesiredRev: 1}
	t.mark(kindTown, id)
	t.log(now, "town.created", name, "", "town created")
	return t
}

func empty() *Town {
	return &Town{
		rigs: map[string]*Rig{}, beads: map[string]*Bead{}, runs: map[string]*Run{}, agents: map[string]*Agent{},
		claims: map[string]*Claim{}, breakers: map[string]*Breaker{}, notices: map[int64]*Notice{}, usage: map[string]*Usage{},
		escalations: map[string]*Escalation{},
		dirty:       map[rowKey]struct{}{}, ix: newIndex(), odd: map[rowKey]string{}, raw: map[rowKey][]byte{},
		delta: map[string]Spend{}, lent: map[string]Granted{}, limits: map[string]Spend{},
	}
}

// SetServer gives the server's defaults for settings. They are not stored with the town.
func (t *Town) SetServer(s Settings) {
	t.server = s
	clear(t.limits)
}

// Info returns the town's own row.
func (t *Town) Info() Info { return t.info }

// Sandbox returns the state of the sandbox.
func (t *Town) Sandbox() Sandbox { return t.info.Sandbox }

// Bead returns a copy of a bead.
func (t *Town) Bead(id string) (Bead, bool) {
	b, ok := t.beads[id]
	if !ok {
		return Bead{}, false
	}
	return *b, true
}

// Beads returns copies of all beads in the order of their creation.
func (t *Town) Beads() []Bead {
	return sortedCopies(t.beads, func(a, b Bead) int {
		return cmp.Or(cmp.Compare(a.CreatedAt, b.CreatedAt), cmp.Compare(a.ID, b.ID))
	})
}

// Rig returns a copy of a rig.
func (t *Town) Rig(name string) (Rig, bool) {
	r, ok := t.rigs[name]
	if !ok {
		return Rig{}, false
	}
	return *r, true
}

// Rigs returns copies of all rigs by name.
func (t *Town) Rigs() []Rig {
	return sortedCopies(t.rigs, func(a, b Rig) int { return cmp.Compare(a.Name, b.Name) })
}

// Run returns a copy of a run that has not ended.
func (t *Town) Run(id string) (Run, bool) {
	r, ok := t.runs[id]
	if !ok {
		return Run{}, false
	}
	return *r, true
}

// Runs returns copies of the runs that have not ended, by id.
func (t *Town) Runs() []Run {
	return sortedCopies(t.runs, func(a, b Run) int { return cmp.Compare(a.ID, b.ID) })
}

// Agents returns copies of all agents by id.
func (t *Town) Agents() []Agent {
	return sortedCopies(t.agents, func(a, b Agent) int { return cmp.Compare(a.ID, b.ID) })
}

// Breakers returns copies of the open and recent breakers by subject.
func (t *Town) Breakers() []Breaker {
	return sortedCopies(t.breakers, func(a, b Breaker) int { return cmp.Compare(a.Subject, b.Subject) })
}

// Notices returns copies of the notices that were not delivered, by id.
func (t *Town) Notices() []Notice {
	return sortedCopies(t.notices, func(a, b Notice) int { return cmp.Compare(a.ID, b.ID) })
}

// Claims returns copies of the claims by key.
func (t *Town) Claims() []Claim {
	return sortedCopies(t.claims, func(a, b Claim) int { return cmp.Compare(a.Key, b.Key) })
}

// Quarantined returns the rows that could not be read.
func (t *Town) Quarantined() []Quarantined { return slices.Clone(t.bad) }

func sortedCopies[K comparable, V any](m map[K]*V, by func(a, b V) int) []V {
	out := make([]V, 0, len(m))
	for v := range maps.Values(m) {
		out = append(out, *v)
	}
	slices.SortFunc(out, by)
	return out
}

// log appends an entry to the ledger.
func (t *Town) log(now Time, kind, subject, actor, text string, data ...string) {
	t.info.LedgerSeq++
	t.mark(kindTown, t.info.ID)
	e := Entry{Seq: t.info.LedgerSeq, At: now, Kind: kind, Subject: subject, Actor: cmp.Or(actor, "town"), Text: text}
	for i := 0; i+1 < len(data); i += 2 {
		if data[i+1] == "" {
			continue
		}
		if e.Data == nil {
			e.Data = map[string]string{}
		}
		e.Data[data[i]] = data[i+1]
	}
	t.entries = append(t.entries, e)
}

// NoBead is the error for a bead that is not there, or can't be read.
func (t *Town) NoBead(id string) error {
	if t.unreadable(kindBead, id) {
		return errs.New(errs.NotFound, "bead %s can't be read: its row is quarantined", clip(id, 60)).
			WithHint("gastown doctor --town %s says what is wrong with it", t.info.Name)
	}
	return errs.New(errs.NotFound, "no bead %s", clip(id, 60)).WithHint("gastown bead list shows those that exist")
}

func noRig(name string) error {
	return errs.New(errs.NotFound, "no rig %s", clip(name, 60)).WithHint("gastown rig list shows those that exist")
}
