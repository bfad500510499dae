package api

import "time"

// Restored is what a restore did.
type Restored struct {
	TakenAt        time.Time `json:"taken_at" doc:"When the backup was taken."`
	Towns          int       `json:"towns"`
	Rigs           int       `json:"rigs"`
	Aside          string    `json:"aside,omitempty" doc:"Directory on the server with what was there before; yours to delete."`
	MissingSecrets []string  `json:"missing_secrets" doc:"Names of the secrets that the backup's server had and this one lacks."`
	ElapsedMS      int64     `json:"elapsed_ms"`
}

// Store is the state of the server's store.
type Store struct {
	State string    `json:"state" enum:"ok,full,read_only,damaged" doc:"Anything but ok: reads are answered, writes refused."`
	Since time.Time `json:"since" doc:"When that began."`
	Cause string    `json:"cause,omitempty"`
	Hint  string    `json:"hint,omitempty" doc:"What to do about it."`
	Check string    `json:"check,omitempty" enum:"running,ok,damaged,stopped" doc:"The check of the database after a stop that was not clean, or a failed write."`
}
