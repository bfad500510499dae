package town

// RunState is where a run stands.
type RunState string

// The states of a run. An ended run is kept only as a RunRecord of its bead.
const (
	RunStarting RunState = "starting" // decided; its agent was not seen yet
	RunRunning  RunState = "running"
	RunDraining RunState = "draining" // verdict given or stop asked; the agent is being ended
)

// Role is what an agent does in a town.
type Role string

// The roles that exist.
const (
	RolePolecat Role = "polecat"
)

// Run is a lease on a bead with an epoch: only messages that carry the current
// epoch (and come from the current generation) touch it.
type Run struct {
	ID         string    `json:"id"` // <bead>.<epoch>
	Bead       string    `json:"bead"`
	Rig        string    `json:"rig"`
	Epoch      int64     `json:"epoch"`
	Role       Role      `json:"role"`
	Agent      string    `json:"agent"`
	Preset     string    `json:"preset"`
	Provider   string    `json:"provider,omitempty"`
	Model      string    `json:"model,omitempty"`
	Chosen     Selection `json:"chosen,omitzero"`       // what it was started with, and where that came from
	OwnProcess bool      `json:"own_process,omitempty"` // it shares no agent process with another run
	State      RunState  `json:"state"`
	Generation int64     `json:"generation,omitempty"` // of the sandbox that runs it; 0 before one does
	Base       string    `json:"base"`
	Start      string    `json:"start"` // commit to begin at
	Branch     string    `json:"branch"`
	CreatedAt  Time      `json:"created_at"`
	SpawnedAt  Time      `json:"spawned_at,omitempty"`
	LifeAt     Time      `json:"life_at,omitempty"`     // last sign of life
	IdleMS     int64     `json:"idle_ms,omitempty"`     // silence of the agent as of the latest heartbeat
	LeaseUntil Time      `json:"lease_until,omitempty"` // 0 while its sandbox is not awake
	Extended   int       `json:"extended,omitempty"`    // leases prolonged because nobody listened
	UnheardMS  int64     `json:"unheard_ms,omitempty"`  // while it ran and nobody listened: not counted by its time limit
	PID        int       `json:"pid,omitempty"`
	SavedAt    Time      `json:"saved_at,omitempty"` // of the checkpoint that the ledger told of last

	Verdict Outcome `json:"verdict,omitempty"` // accepted verdict while draining
	Stop    string  `json:"stop,omitempty"`    // why it must end, while draining
	StopAt  Time    `json:"stop_at,omitempty"` // when draining began
	Nudges  []Nudge `json:"nudges,omitempty"`  // not yet acknowledged
	NudgeN  int     `json:"nudge_n,omitempty"` // number of the latest
	Told    string  `json:"told,omitempty"`    // what its agent is told of what happened before

	SlowMS      int64  `json:"slow_ms,omitempty"`       // its first checkpoint that took too long
	SaveError   string `json:"save_error,omitempty"`    // why its last checkpoint failed
	SaveErrorAt Time   `json:"save_error_at,omitempty"` // since when they fail
	SaveNotes   int    `json:"save_notes,omitempty"`    // failures that the ledger tells of
	SaveTold    bool   `json:"save_told,omitempty"`     // people were told that they fail

	Refused    int    `json:"refused,omitempty"`     // how often its evidence was refused
	RefusedWhy string `json:"refused_why,omitempty"` // the latest time
	Stuck      int    `json:"stuck,omitempty"`       // steps of the ladder for stuck agents taken

	// StopClass is limit when it is stopped because something is used up or limited.
	StopClass Class `json:"stop_class,omitempty"`
	// WaitUntil is when a limit of its provider ends: until then silence means nothing.
	WaitUntil Time   `json:"wait_until,omitempty"`
	Spent     Spend  `json:"spent,omitzero"`
	Marks     []Mark `json:"marks,omitempty"`
}

// Nudge is a message to a running agent.
type Nudge struct {
	N    int    `json:"n"`
	Text string `json:"text"`
	From string `json:"from,omitempty"`
	// Interrupt ends the turn in progress, so that it is read at once.
	Interrupt bool `json:"interrupt,omitempty"`
}

// SentNudge is what is kept of a person's message to the agents of a bead.
type SentNudge struct {
	N         int    `json:"n"` // its number; rises over all runs of the bead
	From      string `json:"from"`
	Text      string `json:"text"`
	Interrupt bool   `json:"interrupt,omitempty"`
	At        Time   `json:"at"`
	// DeliveredAt is when the agent of run Epoch had read it; 0: not yet.
	DeliveredAt Time  `json:"delivered_at,omitempty"`
	Epoch       int64 `json:"epoch,omitempty"`
}

// Agent is the permanent identity of a worker: a name with a history.
type Agent struct {
	ID     string `json:"id"` // <rig>/<name>
	Rig    string `json:"rig"`
	Name   string `json:"name"`
	Role   Role   `json:"role"`
	Run    string `json:"run,omitempty"` // the run it works on now
	Bead   string `json:"bead,omitempty"`
	Closed int    `json:"closed"` // beads of its that were closed
	Failed int    `json:"failed"` // attempts of its that were charged
	Since  Time   `json:"since"`
}
