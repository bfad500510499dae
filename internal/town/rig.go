package town

import "time"

// RigState is where a rig stands.
type RigState string

// The states of a rig.
const (
	RigActive   RigState = "active"
	RigMissing  RigState = "missing" // imported: its repository is not in the hub yet
	RigRemoving RigState = "removing"
)

// MergeMode says how work reaches the target.
type MergeMode string

// The merge modes.
const (
	ModeDirect MergeMode = "direct" // the server pushes the candidate to the target
	ModeBranch MergeMode = "branch" // the server pushes the bead's branch and waits for others to merge it
)

// Gate is a command that a merge candidate must pass.
type Gate struct {
	Name    string        `json:"name"`
	Command string        `json:"command"`
	Timeout time.Duration `json:"timeout,omitempty"` // 0: the setting gate.timeout
}

// Rig is a git repository that the town works on.
type Rig struct {
	Name           string   `json:"name"`
	Prefix         string   `json:"prefix"` // of its beads' ids
	URL            string   `json:"url"`
	Target         string   `json:"target"`
	Gates          []Gate   `json:"gates,omitempty"`
	Settings       Settings `json:"settings,omitempty"`
	Secret         string   `json:"secret,omitempty"` // name of the credential in the server's vault
	UpdateWorktree bool     `json:"update_worktree,omitempty"`
	Expose         []string `json:"expose,omitempty"` // names of values in the vault that its agents and gates see; sorted
	State          RigState `json:"state"`
	CreatedAt      Time     `json:"created_at"`

	Tip       string `json:"tip"` // of the target, as last seen by the server
	FetchedAt Time   `json:"fetched_at"`
	WriteAt   Time   `json:"write_at,omitempty"` // when upstream last let the server push, or said that it would; 0 = ask again
}
