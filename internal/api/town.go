package api

import "time"

// Town is a town.
type Town struct {
	ID          string            `json:"id"`
	Name        string            `json:"name"`
	Owner       string            `json:"owner"`
	CreatedAt   time.Time         `json:"created_at"`
	Mode        string            `json:"mode" enum:"active,paused,sleeping,deleting,importing"`
	ModeBy      string            `json:"mode_by,omitempty"`
	ModeAt      time.Time         `json:"mode_at,omitzero"`
	Settings    map[string]string `json:"settings,omitempty" doc:"What was set for the town itself."`
	Sandbox     Sandbox           `json:"sandbox"`
	Open        int64             `json:"open" doc:"Beads that are not terminal."`
	Failing     string            `json:"failing,omitempty" doc:"Last error of the town's loop."`
	Escalations int               `json:"escalations,omitempty" doc:"How many things need a person."`
	Quarantined []QuarantinedRow  `json:"quarantined,omitempty" doc:"Rows that could not be read."`
}

// QuarantinedRow is a stored row that could not be read.
type QuarantinedRow struct {
	Kind  string `json:"kind"`
	ID    string `json:"id"`
	Error string `json:"error"`
}

// Sandbox is the town's one sandbox.
type Sandbox struct {
	State       string    `json:"state" enum:"asleep,queued,starting,awake,draining,stopping,wedged"`
	Generation  int64     `json:"generation"`
	Since       time.Time `json:"since,omitzero"`
	StartedAt   time.Time `json:"started_at,omitzero"`
	StartReason string    `json:"start_reason,omitempty"`
	StopReason  string    `json:"stop_reason,omitempty"`
	LastSeen    time.Time `json:"last_seen,omitzero"`
	TokenAt     time.Time `json:"token_at,omitzero"`
	Position    int       `json:"position,omitempty" doc:"Place in the queue for a slot, from 1."`
	Starts      int64     `json:"starts"`
	Renewals    int64     `json:"renewals" doc:"Of its token."`
	AwakeMS     int64     `json:"awake_ms" doc:"Time awake in the past stays."`
}

// TownItem is a town in a list.
type TownItem struct {
	ID         string    `json:"id"`
	Name       string    `json:"name"`
	Owner      string    `json:"owner"`
	CreatedAt  time.Time `json:"created_at"`
	Status     string    `json:"status" enum:"active,paused,sleeping,deleting,importing"`
	Sandbox    string    `json:"sandbox" enum:"asleep,queued,starting,awake,draining,stopping,wedged"`
	Generation int64     `json:"generation"`
	Wanted     bool      `json:"wanted" doc:"Something wants the sandbox awake."`
	Open       int64     `json:"open"`
	Failing    string    `json:"failing,omitempty"`
	DueAt      time.Time `json:"due_at,omitzero" doc:"When the town is looked at next for a reason of its own."`
}

// CreateTown makes a town.
type CreateTown struct {
	Name     string            `json:"name"`
	Owner    string            `json:"owner,omitempty"`
	Settings map[string]string `json:"settings,omitempty"`
}

// Pause lets nothing new start.
type Pause struct {
	Now bool `json:"now,omitempty" doc:"Drain the sandbox now, too (sleep)."`
}

// Resume ends a pause or a sleep.
type Resume struct {
	ForMS int64 `json:"for_ms,omitempty" minimum:"0" maximum:"604800000" doc:"Keep the sandbox awake that long (wake)."`
}

// Retry names a breaker, bead, notice or escalation to try again now.
type Retry struct {
	ID string `json:"id"`
}

// Reason says why something is as it is.
type Reason struct {
	State   string    `json:"state" doc:"runnable, active, waiting or terminal."`
	Kind    string    `json:"kind"`
	Text    string    `json:"text"`
	Subject string    `json:"subject,omitempty"`
	Until   time.Time `json:"until,omitzero"`
	Uses    *Uses     `json:"uses,omitempty" doc:"Of a bead that is not ended, where it is asked for why alone."`
}

// Uses says with what a bead is worked on, and which setting says so.
type Uses struct {
	Agent    Choice `json:"agent" doc:"The preset."`
	Provider Choice `json:"provider"`
	Model    Choice `json:"model"`
}

// Choice is a value and the setting that gave it.
type Choice struct {
	Value string `json:"value"`
	From  string `json:"from" doc:"bead, rig, town, server or default."`
	Key   string `json:"key" doc:"Such as agent, or role.polecat.agent."`
}

// Hold is one reason for which a sandbox is wanted awake.
type Hold struct {
	Reason  string    `json:"reason" doc:"run, gates or human."`
	Subject string    `json:"subject"`
	Bead    string    `json:"bead,omitempty"`
	Since   time.Time `json:"since,omitzero"`
	Until   time.Time `json:"until,omitzero"`
}

// Breaker stops an action on infrastructure from repeating too fast.
type Breaker struct {
	Subject string    `json:"subject"`
	Fails   int       `json:"fails"`
	Until   time.Time `json:"until,omitzero"`
	Last    string    `json:"last"`
	Limit   bool      `json:"limit,omitempty" doc:"No failure: a model provider limits its use until then."`
	Since   time.Time `json:"since,omitzero"`
}

// Notice is something that people are told and that was not delivered.
type Notice struct {
	ID      int64     `json:"id"`
	Kind    string    `json:"kind"`
	Subject string    `json:"subject"`
	Text    string    `json:"text"`
	At      time.Time `json:"at"`
	Tries   int       `json:"tries"`
	Error   string    `json:"error,omitempty"`
	Dead    bool      `json:"dead,omitempty" doc:"Given up; retry tries it again."`
}

// Claim is something that a server is doing for the town right now.
type Claim struct {
	Key     string    `json:"key"`
	Attempt int       `json:"attempt"`
	By      string    `json:"by" doc:"Boot id of the server."`
	Until   time.Time `json:"until,omitzero"`
}

// WhyTown answers why a sandbox is awake or asleep, and what the town waits for.
type WhyTown struct {
	Town     string    `json:"town"`
	Mode     string    `json:"mode"`
	State    string    `json:"state" doc:"Of the sandbox."`
	Text     string    `json:"text"`
	Until    time.Time `json:"until,omitzero" doc:"End of the grace after the last hold."`
	NextWake time.Time `json:"next_wake,omitzero" doc:"When the town is looked at next by itself."`
	Sandbox  Sandbox   `json:"sandbox"`
	Holds    []Hold    `json:"holds"`
	Breakers []Breaker `json:"breakers"`
	Claims   []Claim   `json:"claims"`
	Notices  []Notice  `json:"notices"`

	Escalations []Escalation `json:"escalations" doc:"What needs a person."`
	Failing     string       `json:"failing,omitempty"`
}

// Usage is what a town has used.
type Usage struct {
	Town       string `json:"town"`
	Starts     int64  `json:"starts" doc:"Starts of the sandbox."`
	Renewals   int64  `json:"renewals" doc:"Renewals of its token."`
	AwakeMS    int64  `json:"awake_ms" doc:"Time that the sandbox was awake, the present stay included."`
	Runs       int64  `json:"runs" doc:"Runs on record, the present ones included."`
	RunMS      int64  `json:"run_ms" doc:"Time of these runs."`
	Closed     int64  `json:"closed"`
	Failed     int64  `json:"failed"`
	Cancelled  int64  `json:"cancelled"`
	Open       int64  `json:"open"`
	Generation int64  `json:"generation"`

	Days    []UsageDay  `json:"days" doc:"By day in UTC, the oldest first."`
	Budgets []Budget    `json:"budgets" doc:"The limits of the town and the server that are set."`
	Beads   []BeadSpend `json:"beads" doc:"The beads that cost most, at most 100."`
}

// BeadSpend is what one bead cost in all its life.
type BeadSpend struct {
	Bead   string `json:"bead"`
	Title  string `json:"title"`
	Status string `json:"status"`
	Spent  Spend  `json:"spent"`
}

// UsageDay is what a town used on one day in UTC. Every millisecond between start
// and end of a sandbox belongs to exactly one phase.
type UsageDay struct {
	Day        string           `json:"day" doc:"Such as 2026-01-31."`
	AwakeMS    int64            `json:"awake_ms" doc:"The sum of the phases."`
	StartingMS int64            `json:"starting_ms"`
	HeldMS     int64            `json:"held_ms" doc:"With at least one hold."`
	GraceMS    int64            `json:"grace_ms" doc:"After the last hold."`
	DrainingMS int64            `json:"draining_ms"`
	StoppingMS int64            `json:"stopping_ms"`
	Holds      map[string]int64 `json:"holds,omitempty" doc:"By hold; they may overlap."`
	Runs       int64            `json:"runs" doc:"Runs started."`
	Tokens     int64            `json:"tokens"`
	CostMicros int64            `json:"cost_micros" doc:"Millionths of a dollar."`
	Unpriced   int64            `json:"unpriced_tokens,omitempty" doc:"Tokens of models without a price of their own."`
}

// LedgerEntry is one line of a town's ledger, and the data of a town's events.
type LedgerEntry struct {
	Seq     int64             `json:"seq"`
	At      time.Time         `json:"at"`
	Kind    string            `json:"kind"`
	Subject string            `json:"subject,omitempty"`
	Actor   string            `json:"actor,omitempty"`
	Text    string            `json:"text,omitempty"`
	Data    map[string]string `json:"data,omitempty"`
}
