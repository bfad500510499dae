package api

import "time"

// Escalation says that something needs a person. At most one is open per cause
// and subject; it closes with its subject.
type Escalation struct {
	ID      string    `json:"id" doc:"Such as esc/3; retry takes it, which resets its subject."`
	Town    string    `json:"town"`
	Cause   string    `json:"cause" enum:"bead.failed,bead.escalated,bead.stuck,bead.unsaved,breaker.open,many"`
	Subject string    `json:"subject" doc:"A bead, the subject of a breaker, or the town."`
	Text    string    `json:"text"`
	Count   int       `json:"count" doc:"How often it came up."`
	First   time.Time `json:"first"`
	Last    time.Time `json:"last"`
	Open    bool      `json:"open"`
	Closed  time.Time `json:"closed,omitzero"`
	How     string    `json:"how,omitempty" doc:"How it was closed."`
	SeenBy  string    `json:"seen_by,omitempty" doc:"Who acknowledged it. It stays open until its subject is settled."`
	SeenAt  time.Time `json:"seen_at,omitzero"`
}

// Seen acknowledges an escalation.
type Seen struct {
	ID string `json:"id" doc:"Of the escalation, such as esc/3."`
}
