package town

import "time"

// Action is what the outside world is asked to do. The types below are all that
// exist; each says what makes a repeat harmless.
type Action interface{ action() string }

// Admit asks for one of the server's slots. A repeat finds the slot it has.
type Admit struct{}

// StartSandbox starts the sandbox of a generation. The driver starts each
// generation at most once.
type StartSandbox struct {
	Generation int64
	FreshDisk  bool
	TokenAt    Time // issue time of the token that the runner gets
}

// StopSandbox ends the sandbox of a generation, if it still exists.
type StopSandbox struct {
	Generation int64
	Ref        string
	Grace      time.Duration
}

// InspectSandbox asks the driver, never the inside, whether it runs.
type InspectSandbox struct {
	Generation int64
	Ref        string
}

// FetchRig brings the tip of the rig's target into the hub. With Write it also asks
// upstream whether the server may push, and changes nothing there.
type FetchRig struct {
	Rig   Rig
	Write bool
}

// BuildCandidate makes the merge of a bead's commit with the tip. Author and
// date are fixed, so that a repeat makes the same commit.
type BuildCandidate struct {
	Rig     Rig
	Bead    string
	N       int
	Commit  string
	Tip     string
	Message string
	Name    string // author
	Address string
	When    Time
}

// Land pushes a candidate upstream with the tip as its lease.
type Land struct {
	Rig       Rig
	Bead      string
	Candidate string
	Tip       string
}

// Publish pushes a bead's branch upstream (mode branch).
type Publish struct {
	Rig    Rig
	Bead   string
	Branch string
	Commit string
}

// CheckTarget asks whether the target upstream contains a commit (mode branch).
type CheckTarget struct {
	Rig    Rig
	Bead   string
	Commit string
}

// CleanupBead removes the refs of an ended bead from the hub.
type CleanupBead struct {
	Rig    Rig
	Bead   string
	Branch string
}

// RemoveRig removes the hub's repository and the credential of a rig.
type RemoveRig struct{ Rig Rig }

// RemoveTown removes disks, repositories and credentials of a town whose
// sandbox is gone. Its rows go last, by the performer, after this succeeded.
type RemoveTown struct{}

// SendNotice tells people. Notice.ID makes a repeat recognizable.
type SendNotice struct {
	Notice Notice
	URL    string // the webhook, "" for none
}

// RenewToken checks that the sandbox may have a token issued at At.
type RenewToken struct {
	Generation int64
	At         Time
}

func (Admit) action() string          { return "sandbox.admit" }
func (StartSandbox) action() string   { return "sandbox.start" }
func (StopSandbox) action() string    { return "sandbox.stop" }
func (InspectSandbox) action() string { return "sandbox.inspect" }
func (FetchRig) action() string       { return "rig.fetch" }
func (BuildCandidate) action() string { return "merge.candidate" }
func (Land) action() string           { return "merge.land" }
func (Publish) action() string        { return "merge.publish" }
func (CheckTarget) action() string    { return "merge.check" }
func (CleanupBead) action() string    { return "bead.cleanup" }
func (RemoveRig) action() string      { return "rig.remove" }
func (RemoveTown) action() string     { return "town.remove" }
func (SendNotice) action() string     { return "notify" }
func (RenewToken) action() string     { return "token.renew" }

// Actions returns one value of every action that exists.
func Actions() []Action {
	return []Action{Admit{}, StartSandbox{}, StopSandbox{}, InspectSandbox{}, FetchRig{}, BuildCandidate{}, Land{}, Publish{},
		CheckTarget{}, CleanupBead{}, RemoveRig{}, RemoveTown{}, SendNotice{}, RenewToken{}}
}

// ActionName names an action in logs, metrics and claims.
func ActionName(a Action) string { return a.action() }

// Effect is an action that the state asks for now.
type Effect struct {
	Key     string        // what it is about; at most one claim per key
	ID      int64         // of the claim; 0 before Claim
	Action  Action        //
	Timeout time.Duration // how long the claim lasts, and the deadline of the call
}

// Claim records who performs an effect and until when nobody else may.
type Claim struct {
	Key     string `json:"key"`
	ID      int64  `json:"id"`
	Attempt int    `json:"attempt"`
	By      string `json:"by"` // boot id of the process
	Until   Time   `json:"until"`
}

// Outcomes of actions, the Result of an EffectDone. Actions not named here have
// no result but their error.
type (
	// Admitted answers Admit.
	Admitted struct {
		Granted  bool
		Position int // in the queue, from 1, when not granted
	}
	// Started answers StartSandbox.
	Started struct{ Ref string }
	// Inspected answers InspectSandbox. State is running, gone or unknown.
	Inspected struct{ State, Reason string }
	// Fetched answers FetchRig. Where Write was asked, either Writable is set, or
	// Refused says why upstream takes no push.
	Fetched struct {
		Tip      string
		Writable bool
		Refused  string
	}
	// Candidate answers BuildCandidate.
	Candidate struct {
		Commit    string
		Conflict  bool
		Detail    string // which files conflict
		AlreadyIn bool   // the tip contains the commit already
	}
	// Landed answers Land: pushed, or lost to a newer Tip.
	Landed struct {
		Lost bool
		Tip  string
	}
	// Checked answers CheckTarget.
	Checked struct {
		In  bool
		Tip string
	}
)

// Notice is something that people are told.
type Notice struct {
	ID      int64  `json:"id"`
	Kind    string `json:"kind"` // bead.failed, bead.escalated, budget.reached, breaker.open, town.finished
	Subject string `json:"subject"`
	Text    string `json:"text"`
	At      Time   `json:"at"`
	Tries   int    `json:"tries"`
	Next    Time   `json:"next,omitempty"`
	Error   string `json:"error,omitempty"`
	Dead    bool   `json:"dead,omitempty"` // given up; kept so that a person can see it
}

const maxNoticeTries = 8

// Breaker stops an action on infrastructure from repeating too fast. Only
// success or a person resets it.
type Breaker struct {
	// sandbox, sandbox.stop, sandbox.inspect, token, rig/<name>, push/<rig>, write/<rig>,
	// gates/<rig>, hub/<rig>, agent/<preset>, provider/<name>, merge/<bead>, town
	Subject string `json:"subject"`
	Fails   int    `json:"fails"`
	Until   Time   `json:"until"`
	Last    string `json:"last"`
	Since   Time   `json:"since"`
	Limit   bool   `json:"limit,omitempty"` // it is no failure: a provider limits its use until then
}
