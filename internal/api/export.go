package api

import "time"

// Imported says what an import did, or with DryRun what it would do.
type Imported struct {
	Town       string        `json:"town" doc:"Name of the new town."`
	TownID     string        `json:"town_id,omitempty"`
	DryRun     bool          `json:"dry_run,omitempty" doc:"The file is good and nothing was changed."`
	From       string        `json:"from" doc:"Name of the exported town."`
	ExportedAt time.Time     `json:"exported_at"`
	Mode       string        `json:"mode" enum:"active,paused"`
	Rigs       []ImportedRig `json:"rigs"`
	Beads      int           `json:"beads"`
	Reopened   int           `json:"reopened" doc:"Beads that were in progress or in review; they are open again."`
	Ledger     int64         `json:"ledger" doc:"Entries of the ledger."`
	LeftOut    []string      `json:"left_out,omitempty" doc:"What the export left out: settings that may hold a secret, rows that could not be read."`
}

// ImportedRig is a rig of an import. Its repository is not cloned yet.
type ImportedRig struct {
	Name       string `json:"name"`
	Prefix     string `json:"prefix"`
	URL        string `json:"url"`
	Target     string `json:"target"`
	Credential bool   `json:"credential,omitempty" doc:"It had a credential, which an export does not carry."`
}

// CloneRig clones the repository of an imported rig. The server does so before it answers.
type CloneRig struct {
	URL      string `json:"url,omitempty" doc:"Another place of the repository; default: as imported."`
	GitToken string `json:"git_token,omitempty" doc:"A token, or user:password; the same as a credential of that kind."`

	Credential *Credential `json:"credential,omitempty"`
}

// ImportBead is a line of a list of beads to be created.
type ImportBead struct {
	Name      string            `json:"name,omitempty" doc:"By which other lines name it in blocked_by."`
	Title     string            `json:"title" doc:"One line, at most 300 bytes."`
	Body      string            `json:"body,omitempty" doc:"At most 256 KiB."`
	Priority  *int              `json:"priority,omitempty" doc:"0 is most urgent, 4 least; default 2."`
	Labels    []string          `json:"labels,omitempty"`
	BlockedBy []string          `json:"blocked_by,omitempty" doc:"Names of other lines, or ids of beads."`
	Settings  map[string]string `json:"settings,omitempty"`
}

// ImportedBead is a bead that was created of a line.
type ImportedBead struct {
	Line  int    `json:"line"`
	Name  string `json:"name,omitempty"`
	ID    string `json:"id"`
	Title string `json:"title"`
}
