// Package wire is what a runner and its server say to each other: paths,
// headers and JSON bodies of /runner/v1. The runner always dials; its bearer
// token names town and generation, so no body repeats them.
//
// Answers: 200 with a body, 204 where nothing is new, 410 Gone when the
// generation is old (the runner stops everything and exits) or when the run's
// epoch is old (the runner stops that run), 409 and 422 with a problem document
// whose detail is meant for the agent, 429 and 503 to be tried again.
package wire

import (
	"encoding/json"

	"gastown/internal/town"
)

// Paths below the server's base URL.
const (
	PathHello       = "/runner/v1/hello"       // POST HelloRequest -> town.Desired
	PathDesired     = "/runner/v1/desired"     // GET ?after=N, long poll of 30 s -> town.Desired, or 204
	PathReports     = "/runner/v1/reports"     // POST ReportsRequest -> ReportsResponse
	PathVerdict     = "/runner/v1/verdict"     // POST VerdictRequest -> {}
	PathGates       = "/runner/v1/gates"       // POST GatesRequest -> {}
	PathPrime       = "/runner/v1/prime"       // GET ?run=&epoch= -> town.Prime
	PathBead        = "/runner/v1/bead"        // GET ?id= -> BeadResponse
	PathTranscripts = "/runner/v1/transcripts" // POST TranscriptsRequest -> {}
	PathToken       = "/runner/v1/token"       // POST {} -> TokenResponse; takes a token expired for up to 24 h
	PathGit         = "/runner/v1/git/"        // + <rig>.git/..., smart HTTP onto the hub
	PathModel       = "/runner/v1/model/"      // + <provider>/..., forwarded to the model provider
	PathTunnel      = "/runner/v1/tunnel"      // upgrade to TunnelProtocol: bytes to and from HeaderHost
)

// Headers by which the runner attributes what it forwards to a run.
const (
	HeaderRun   = "Gastown-Run"
	HeaderEpoch = "Gastown-Epoch"
)

// A tunnel is for a run, or for the gates of a bead: then HeaderEpoch is the
// number of the candidate.
const (
	TunnelProtocol = "gastown-tunnel"
	HeaderHost     = "Gastown-Host"  // host:port
	HeaderGates    = "Gastown-Gates" // bead
)

// HeaderWait marks an answer of the model path that is a limit of the provider:
// for how many milliseconds, or -1 when the provider does not say.
const HeaderWait = "Gastown-Wait-Ms"

// HeaderAway marks an answer of a server that is starting, stopping or busy with
// itself: what was asked did not happen, and whoever forwarded it may ask again.
const HeaderAway = "Gastown-Away"

// Environment of the runner inside its sandbox. The token comes on file
// descriptor 3.
const (
	EnvServer = "GASTOWN_SERVER" // base URL of the server
	EnvDisk   = "GASTOWN_DISK"   // directory that outlives sleep
)

// HelloRequest is the first word of a sandbox.
type HelloRequest struct {
	Stream  string `json:"stream"` // random per boot of the runner
	Version string `json:"version"`
}

// ReportsRequest carries the next messages of a stream.
type ReportsRequest struct {
	Stream string        `json:"stream"`
	From   int64         `json:"from"` // number of the first item, from 1
	Items  []town.Report `json:"items"`
}

// ReportsResponse names the number that the server expects next. It also comes
// with status 409 when From was another one.
type ReportsResponse struct {
	Next int64 `json:"next"`
}

// VerdictRequest is what an agent says of its run. CallID makes a repeat harmless.
type VerdictRequest struct {
	Run    string           `json:"run"`
	Epoch  int64            `json:"epoch"`
	CallID string           `json:"call_id"`
	Kind   town.VerdictKind `json:"kind"`
	Text   string           `json:"text"`
}

// GatesRequest reports the gates on a candidate.
type GatesRequest struct {
	Bead      string         `json:"bead"`
	N         int            `json:"n"`
	Candidate string         `json:"candidate"`
	Results   []town.GateRun `json:"results"`
	Infra     string         `json:"infra,omitempty"` // why they could not be run at all
}

// BeadResponse is a bead as an agent may see it.
type BeadResponse struct {
	town.PrimeBead
	Status    town.BeadStatus `json:"status"`
	BlockedBy []string        `json:"blocked_by,omitempty"`
}

// TranscriptItem is one event of a run, kept outside the town's rows.
type TranscriptItem struct {
	Run   string          `json:"run"`
	Epoch int64           `json:"epoch"`
	Seq   int64           `json:"seq"` // rises within (run, epoch), from 1
	At    int64           `json:"at"`  // UTC milliseconds
	Kind  string          `json:"kind"`
	Body  json.RawMessage `json:"body"`
}

// TranscriptsRequest carries events; repeats are ignored by (run, epoch, seq).
type TranscriptsRequest struct {
	Items []TranscriptItem `json:"items"`
}

// TokenResponse carries a new sandbox token.
type TokenResponse struct {
	Token string `json:"token"`
}
