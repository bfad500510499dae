package town

import "time"

// Input is anything that happens to a town. The types below are all that exist.
type Input interface{ input() string }

// InputName names an input in logs and metrics.
func InputName(in Input) string { return in.input() }

// Commands of people. By names who asks; it stands in the ledger.
type (
	// CreateBead adds a bead. ID must be fresh; its prefix must be the rig's.
	// Staged beads wait until they are slung.
	CreateBead struct {
		By        string
		ID        string
		Rig       string
		Title     string
		Body      string
		Priority  int
		Labels    []string
		BlockedBy []string
		Staged    bool
		Settings  Settings
	}
	// CreateBeads adds all of its beads, which may block each other in any order,
	// or none. An error names the line: the position of the bead, from 1.
	CreateBeads struct {
		By    string
		Beads []CreateBead // By is ignored
	}
	// SlingBead releases a staged bead.
	SlingBead struct{ By, Bead string }
	// EditBead changes the fields that are not nil. A bead at work keeps its
	// current run; terminal beads can't be edited.
	EditBead struct {
		By       string
		Bead     string
		Title    *string
		Body     *string
		Priority *int
		Labels   *[]string
		Set      Settings
		Unset    []string
	}
	// DependBead adds or removes a blocker.
	DependBead struct {
		By, Bead, On string
		Remove       bool
	}
	// CloseBead closes a bead on the word of a person.
	CloseBead struct{ By, Bead, Reason string }
	// CancelBead stops a bead for good, until a person reopens it.
	CancelBead struct{ By, Bead, Reason string }
	// ReopenBead makes a terminal or escalated bead open again, with fresh counters.
	ReopenBead struct{ By, Bead, Reason string }
	// NudgeBead sends a message to the agent at work on a bead, which reads it when
	// its turn ends; Interrupt ends the turn.
	NudgeBead struct {
		By, Bead, Text string
		Interrupt      bool
	}
	// Retry resets the counter of a breaker, a bead's backoff, a dead notice or the
	// subject of an escalation, named by ID.
	Retry struct{ By, ID string }

	// DropRow deletes a quarantined row, named kind/id, for good.
	DropRow struct{ By, Name string }
	// Mend does what Doctor calls fixable, and notes what was fixed outside.
	Mend struct {
		By   string
		Did  []string
		Lost int64 // entries that the ledger lacks, which By knows now; 0 for none
	}
	// Acknowledge notes that a person saw an escalation. It stays open.
	Acknowledge struct{ By, ID string }

	// AddRig adds a rig whose repository is in the hub already, with its target at Tip,
	// and whose upstream takes pushes.
	AddRig struct {
		By  string
		Rig Rig // State, CreatedAt, FetchedAt, WriteAt are set by the town
	}
	// SetRig changes settings and, where not nil, the gates of a rig.
	SetRig struct {
		By    string
		Rig   string
		Set   Settings
		Unset []string
		Gates *[]Gate
		// Access says in words how the rig is reached differently now, "" for not;
		// Secret is the new name of its credential, nil for the same.
		Access string
		Secret *string
		// Expose and Hide are names of values that agents and gates see from now on,
		// or no longer.
		Expose, Hide []string
		// Allow and Deny add hosts to the list of network.allow as it holds for the
		// rig, and take them off it.
		Allow, Deny []string
	}
	// DropRig removes a rig. Refused while it has beads that are not terminal, unless Force cancels them.
	DropRig struct {
		By, Rig string
		Force   bool
	}
	// SetTown changes settings of the town.
	SetTown struct {
		By    string
		Set   Settings
		Unset []string
	}
	// Pause lets nothing new start. Now drains the sandbox too (sleep).
	Pause struct {
		By  string
		Now bool
	}
	// Resume ends a pause or sleep. For keeps the sandbox awake that long (wake).
	Resume struct {
		By  string
		For time.Duration
	}
	// RefreshToken renews the token of an awake sandbox before its time.
	RefreshToken struct{ By string }
	// DeleteTown removes everything. Irreversible.
	DeleteTown struct{ By string }

	// ImportPart adds what a file carries to a town that is being imported. N
	// counts from 0; a part that was taken already changes nothing. What it brings
	// was checked by an Importer; it is checked again as far as the town alone can.
	ImportPart struct {
		N      int
		Rigs   []Rig
		Beads  []Bead
		Ledger []Entry
	}
	// FinishImport ends an import: the town becomes paused, or active with Start.
	FinishImport struct {
		By         string
		From       string // name of the exported town
		ExportedAt Time
		Counts     ExportCounts // what must have arrived; its dependencies are not compared
		Reopened   int          // beads that were at work when they were exported
		Start      bool
	}
	// CloneRig says that the repository of an imported rig is in the hub now, with its target at Tip.
	CloneRig struct{ By, Rig, URL, Tip, Secret string }
)

// Messages of the runner, each fenced by generation and epoch. A stale one is
// refused with an errs.Gone error that says what the runner should do.
type (
	// Hello is the first word of a sandbox.
	Hello struct {
		Generation int64
		Stream     string
	}
	// Reports are the next messages of a stream; the first has number From.
	Reports struct {
		Generation int64
		Stream     string
		From       int64
		Items      []Report
	}
	// Verdict is what an agent says of its run: done, no_change or escalate.
	// Evidence is what the server itself found in the hub (done only).
	Verdict struct {
		Generation int64
		Run        string
		Epoch      int64
		CallID     string
		Kind       VerdictKind
		Text       string // summary or reason
		Evidence   Evidence
	}
	// Refused says that what an agent called done was refused for its evidence.
	Refused struct {
		Generation int64
		Run        string
		Epoch      int64
		Why        string
	}
	// GatesDone reports the gates on a candidate. Infra says why they could not be run at all.
	GatesDone struct {
		Generation int64
		Bead       string
		N          int
		Candidate  string
		Results    []GateRun
		Infra      string
	}
	// Exchange asks for a new token for an awake sandbox.
	Exchange struct{ Generation int64 }
)

// Words of the server's own model gateway, which are trusted. Nothing of them
// comes from the sandbox but that a request was made.
type (
	// Metered says what a run spent since the last report of this meter on it. Seq
	// rises with each report of a meter on a run; a repeat changes nothing.
	Metered struct {
		Run    string
		Epoch  int64
		Meter  string
		Seq    int64
		Tokens int64
		Cost   int64 // millionths of a dollar
		// Unpriced is how many of the tokens are of models without a price of their own.
		Unpriced int64
	}
	// TakeBlock asks for what a run needs to go on spending, in the name of the meter
	// that will settle it with its report number 1. A repeat prolongs the block.
	TakeBlock struct {
		Run    string
		Epoch  int64
		ID     string
		Tokens int64 // that the next request needs, about
		Cost   int64
	}
	// Limited says that the provider of a run refused a request because of a rate
	// limit or a quota, until a time that it stated (0: it stated none).
	Limited struct {
		Run      string
		Epoch    int64
		Provider string
		Until    Time
		Reason   string
	}
	// ProviderWorks says that the provider of a run answered it after a limit.
	ProviderWorks struct {
		Run      string
		Epoch    int64
		Provider string
	}
)

// Observations and the passing of time.
type (
	// SandboxExited is the driver's word that a generation is gone.
	SandboxExited struct {
		Generation int64
		Reason     string
	}
	// EffectDone is the outcome of a claimed effect. Err is "" when it succeeded.
	EffectDone struct {
		Key    string
		ID     int64
		Err    string
		Result any // see Admitted and the other outcomes
	}
	// Unheard says that nobody listened for a while (a restart, a laptop asleep):
	// silence until now proves nothing.
	Unheard struct{}
	// SlotFree says that one of the server's places may have become free: a town
	// that waits for one asks at once.
	SlotFree struct{}
	// Restored says that the town was just restored from a backup made at At. No
	// sandbox of a generation up to Generation may be listened to any more. Running is
	// the generation that the driver says still runs, 0 for none.
	Restored struct {
		Generation, Running int64
		At                  Time
	}
	// Tick lets time alone act.
	Tick struct{}
)

// VerdictKind is what an agent may say of its run.
type VerdictKind string

// The verdicts.
const (
	VerdictDone     VerdictKind = "done"
	VerdictNoChange VerdictKind = "no_change"
	VerdictEscalate VerdictKind = "escalate"
)

// Evidence is what the server found in its hub about a bead's branch.
type Evidence struct {
	Commit   string
	Exists   bool // the hub holds the branch
	Descends bool // from the bead's base
	Changed  bool // its tree differs from the base's
}

func (CreateBead) input() string    { return "bead.create" }
func (CreateBeads) input() string   { return "bead.import" }
func (SlingBead) input() string     { return "bead.sling" }
func (EditBead) input() string      { return "bead.edit" }
func (DependBead) input() string    { return "bead.depend" }
func (CloseBead) input() string     { return "bead.close" }
func (CancelBead) input() string    { return "bead.cancel" }
func (ReopenBead) input() string    { return "bead.reopen" }
func (NudgeBead) input() string     { return "bead.nudge" }
func (Retry) input() string         { return "retry" }
func (Mend) input() string          { return "doctor.mend" }
func (DropRow) input() string       { return "row.drop" }
func (Acknowledge) input() string   { return "escalation.seen" }
func (AddRig) input() string        { return "rig.add" }
func (SetRig) input() string        { return "rig.set" }
func (DropRig) input() string       { return "rig.drop" }
func (SetTown) input() string       { return "town.set" }
func (Pause) input() string         { return "town.pause" }
func (Resume) input() string        { return "town.resume" }
func (RefreshToken) input() string  { return "token.refresh" }
func (DeleteTown) input() string    { return "town.delete" }
func (ImportPart) input() string    { return "town.import" }
func (FinishImport) input() string  { return "town.imported" }
func (CloneRig) input() string      { return "rig.clone" }
func (Hello) input() string         { return "sandbox.hello" }
func (Reports) input() string       { return "sandbox.reports" }
func (Verdict) input() string       { return "run.verdict" }
func (Refused) input() string       { return "run.refused" }
func (GatesDone) input() string     { return "merge.gates" }
func (Exchange) input() string      { return "token.exchange" }
func (Metered) input() string       { return "usage" }
func (TakeBlock) input() string     { return "usage.block" }
func (Limited) input() string       { return "provider.limited" }
func (ProviderWorks) input() string { return "provider.works" }
func (SandboxExited) input() string { return "sandbox.exited" }
func (EffectDone) input() string    { return "effect.done" }
func (Unheard) input() string       { return "unheard" }
func (SlotFree) input() string      { return "slot.free" }
func (Restored) input() string      { return "restored" }
func (Tick) input() string          { return "tick" }

// Inputs returns one zero value of every input that exists.
func Inputs() []Input {
	return []Input{CreateBead{}, CreateBeads{}, SlingBead{}, EditBead{}, DependBead{}, CloseBead{}, CancelBead{}, ReopenBead{}, NudgeBead{}, Retry{}, DropRow{}, Mend{}, Acknowledge{},
		AddRig{}, SetRig{}, DropRig{}, SetTown{}, Pause{}, Resume{}, RefreshToken{}, DeleteTown{}, ImportPart{}, FinishImport{}, CloneRig{}, Hello{}, Reports{}, Verdict{}, Refused{}, GatesDone{}, Exchange{},
		Metered{}, TakeBlock{}, Limited{}, ProviderWorks{},
		SandboxExited{}, EffectDone{}, Unheard{}, SlotFree{}, Restored{}, Tick{}}
}
