package server

import (
	"context"
	"io"
	"log/slog"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"gastown/internal/agent"
	"gastown/internal/api"
	"gastown/internal/gateway"
	"gastown/internal/git/hub"
	"gastown/internal/hall"
	"gastown/internal/scrub"
	"gastown/internal/store"
	"gastown/internal/town"
)

// Hall is what the server needs of the hall. Errors have errs kinds.
type Hall interface {
	// CreateTown makes a town and returns its id. With idem, which may be nil, a
	// repeat returns the same id.
	CreateTown(ctx context.Context, name, owner string, settings town.Settings, by string, idem *hall.Idem) (string, error)
	// StartImport makes a town that takes town.ImportPart inputs. A repeat of the
	// same request, unless it is "", finds the town of the first.
	StartImport(ctx context.Context, in town.ImportedTown, request string) (string, error)
	// Do handles one input and returns after its commit.
	Do(ctx context.Context, townID string, in town.Input) error
	// DoIdem is Do with a record of the answer that commits with the input.
	// With a key that is recorded with the same hash it returns the record.
	DoIdem(ctx context.Context, townID string, in town.Input, key, hash string,
		respond func(*town.Town) (status int, body []byte)) (status int, body []byte, replayed bool, err error)
	// View shows a town as committed after the call began. fn must not keep or change it.
	View(ctx context.Context, townID string, fn func(t *town.Town, now time.Time) error) error
	// Resolve finds a town by name or id.
	Resolve(ctx context.Context, nameOrID string) (store.Head, error)
	// Desired waits until the document's rev is above after, or ctx ends (false).
	Desired(ctx context.Context, townID string, generation, after int64) (town.Desired, bool, error)
	// Watch signals (or closes the channel) after commits of this process to a town.
	Watch(townID string) (changed <-chan struct{}, cancel func())
}

// Store is the part of the store that the server reads, and where transcripts
// and the server's own idempotency records go.
type Store interface {
	Heads(ctx context.Context, after string, limit int) ([]store.Head, error)
	Head(ctx context.Context, id string) (store.Head, error)
	AwakeTowns(ctx context.Context) ([]store.Head, error)
	FindRig(ctx context.Context, rig string) ([]store.RigIndex, error)
	FindPrefix(ctx context.Context, prefix string) ([]store.RigIndex, error)
	Ledger(ctx context.Context, town string, q store.LedgerQuery) ([]store.Entry, error)
	Idem(ctx context.Context, town, key string) (store.Idem, bool, error)
	PutIdem(ctx context.Context, town string, r store.Idem) error
	SlotCounts(ctx context.Context) (store.SlotCounts, error)
	AppendTranscript(ctx context.Context, chunks []store.Chunk) error
	Transcript(ctx context.Context, town, run string, epoch, after int64, limit int) ([]store.Chunk, error)
	Meta(ctx context.Context, key string) (string, bool, error)
	Stats() store.Stats
}

// Hub is what the server needs of the repositories.
type Hub interface {
	Add(ctx context.Context, id hub.ID, r hub.Remote, o hub.AddOptions) (tip string, err error)
	MayPush(ctx context.Context, id hub.ID, r hub.Remote) error
	RemoveRig(ctx context.Context, id hub.ID) error
	Verify(ctx context.Context, id hub.ID, branch, base string) (hub.Evidence, error)
	Diff(ctx context.Context, id hub.ID, base, commit string, limit int64) (patch []byte, truncated bool, err error)
}

// Secrets is what the server needs of the vault.
type Secrets interface {
	Put(name string, value []byte) error
	Get(name string) ([]byte, error)
	Delete(name string) error
	List(prefix string) ([]string, error)
}

// Info is what the server tells of itself.
type Info struct {
	Version   string
	Boot      string
	StartedAt time.Time
	Data      string // data directory
	Driver    string // sandbox driver
	Isolation string // in words
	Listen    string
	MaxAwake  int
}

// Config is what a Server is made of. All fields without "may be" are needed.
type Config struct {
	Hall       Hall
	Store      Store
	Hub        Hub
	Secrets    Secrets
	Signer     *Signer
	Presets    agent.Presets
	Info       Info
	AdminToken string // at least 16 bytes
	// Git makes the handler of git requests; may be nil (404).
	Git func(gateway.GitPolicy) http.Handler
	// Doctor examines the server; may be nil (503).
	Doctor Doctor
	// Ready says why the loop that watches alarms does not run; may be nil.
	Ready func(ctx context.Context) error
	// Health is the state of the store; may be nil (always well).
	Health func() store.Health
	// Backup writes a backup, with the values of secrets or without; may be nil (404).
	Backup func(ctx context.Context, w io.Writer, secrets bool) error
	// Restore puts a backup in place of everything and replaces this server; may be
	// nil (404). It returns when the new one works.
	Restore func(ctx context.Context, r io.Reader) (api.Restored, error)
	// Offered hears that providers changed; may be nil.
	Offered func(ctx context.Context)
	// Metrics are the hall's counters; may be nil.
	Metrics *hall.Metrics
	// Collectors are more metrics to show; may be empty.
	Collectors []prometheus.Collector
	// ModelTransport reaches model providers; may be nil for the default.
	ModelTransport http.RoundTripper
	// Dialer connects sandboxes to hosts that their rig opens; may be nil.
	Dialer  *gateway.Dialer
	TLSCert string // files; both or none
	TLSKey  string
	// Scrub takes secrets out of what sandboxes say and of the texts of errors; may be nil.
	Scrub *scrub.Set
	Log   *slog.Logger // may be nil
	Now   func() time.Time
}
