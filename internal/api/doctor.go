package api

// Finding is something that an examination found.
type Finding struct {
	Check    string `json:"check" doc:"What was looked for, such as hold.dangling."`
	Severity string `json:"severity" enum:"problem,info" doc:"A problem breaks a promise; info is worth knowing."`
	Town     string `json:"town,omitempty"`
	Subject  string `json:"subject,omitempty" doc:"What it is about, by the name that other commands take."`
	What     string `json:"what"`
	Means    string `json:"means"`
	Fix      string `json:"fix" doc:"What to do about it."`
	Fixable  bool   `json:"fixable,omitempty" doc:"Fixing does it."`
}

// DoctorReport is what an examination found and how much it looked at.
type DoctorReport struct {
	Findings     []Finding `json:"findings" doc:"Problems first; at most 1000."`
	Problems     int       `json:"problems" doc:"How many, listed or not."`
	Infos        int       `json:"infos" doc:"How many, listed or not."`
	Towns        int       `json:"towns" doc:"Towns whose columns and ledger were looked at."`
	Loaded       int       `json:"loaded" doc:"Towns whose whole state was looked at."`
	Repositories int       `json:"repositories"`
	TookMS       int64     `json:"took_ms"`
}

// DoctorProgress says how far an examination is.
type DoctorProgress struct {
	Running bool   `json:"running"`
	Phase   string `json:"phase,omitempty"`
	Done    int64  `json:"done"`
	Total   int64  `json:"total" doc:"0 when it is not known."`
}

// DoctorFix says what to fix.
type DoctorFix struct {
	Town string   `json:"town,omitempty" doc:"Only this one."`
	Deep bool     `json:"deep,omitempty" doc:"Load every town."`
	Rows []string `json:"rows,omitempty" doc:"Quarantined rows, as kind/id, to be deleted for good; needs town."`
}

// Fixed is one thing that was done, or could not be.
type Fixed struct {
	Check   string `json:"check"`
	Town    string `json:"town,omitempty"`
	Subject string `json:"subject,omitempty"`
	Did     string `json:"did"`
	Error   string `json:"error,omitempty" doc:"Why it could not be done."`
}

// DoctorFixed is what was done, and what is found afterwards.
type DoctorFixed struct {
	Done  []Fixed      `json:"done"`
	After DoctorReport `json:"after"`
}
