package server

import (
	"context"
	"crypto/sha256"
	"log/slog"
	"net/http"
	"sync"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"

	"gastown/internal/errs"
	"gastown/internal/gateway"
)

// Server serves the API. Make it with New.
type Server struct {
	cfg       Config
	hall      Hall
	store     Store
	log       *slog.Logger
	now       func() time.Time
	adminHash [sha256.Size]byte
	providers *gateway.Providers
	metrics   *metrics
	mux       *http.ServeMux
	api       huma.API
	long      map[string]bool  // route patterns that may take longer than a request normally does
	limits    map[string]int64 // body limits of routes that differ from the normal one; -1: the handler's business
	most      map[string]int   // requests that a route takes of one sandbox at a time; unbounded where it has none
	streamed  map[string]bool  // route patterns whose handlers read the body themselves, after the token was checked

	stopOnce sync.Once
	stopping chan struct{} // closed when streams must end

	blocks  *blocks       // what runs may spend, as far as this process holds it
	tellers chan struct{} // holds a token for each word about a limit that is on its way

	crowd  crowd
	places places
	taps   taps
	adding keyed // one rig is added, or one town imported, at a time under a name
	edits  keyed // conditional edits of one bead, one after another
}

// New makes a Server. It fails when the configuration lacks something.
func New(cfg Config) (*Server, error) {
	if cfg.Hall == nil || cfg.Store == nil || cfg.Hub == nil || cfg.Secrets == nil || cfg.Signer == nil {
		return nil, errs.New(errs.Internal, "the server lacks a part that it needs")
	}
	if len(cfg.AdminToken) < minAdminToken {
		return nil, errs.New(errs.Invalid, "the admin token is shorter than %d bytes", minAdminToken)
	}
	if (cfg.TLSCert == "") != (cfg.TLSKey == "") {
		return nil, errs.New(errs.Invalid, "TLS needs a certificate and a key").WithHint("give both --tls-cert and --tls-key")
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	s := &Server{
		cfg: cfg, hall: cfg.Hall, store: cfg.Store, log: cfg.Log, now: cfg.Now,
		adminHash: sha256.Sum256([]byte(cfg.AdminToken)),
		providers: gateway.NewProviders(cfg.Secrets),
		mux:       http.NewServeMux(),
		long:      map[string]bool{}, limits: map[string]int64{}, streamed: map[string]bool{}, most: map[string]int{},
		stopping: make(chan struct{}), tellers: make(chan struct{}, limitTellers),
	}
	s.blocks = newBlocks(cfg.Hall, cfg.Log)
	s.metrics = newMetrics(s)
	s.openAPI()
	s.registerServer()
	s.registerBackup()
	s.registerTowns()
	s.registerEscalations()
	s.registerDoctor()
	s.registerRigs()
	s.registerBeads()
	s.registerHistory()
	s.registerStreams()
	s.registerExport()
	s.dropUnusedSchemas()
	s.registerPublic()
	s.registerRunner()
	return s, nil
}

// Handler returns the handler of everything.
func (s *Server) Handler() http.Handler { return http.HandlerFunc(s.serve) }

// Stop ends streams and long polls, and lets new ones end at once. It is
// harmless when repeated.
func (s *Server) Stop() { s.stopOnce.Do(func() { close(s.stopping) }) }

// untilStop returns a context that also ends when the server stops.
func (s *Server) untilStop(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	go func() {
		select {
		case <-s.stopping:
			cancel()
		case <-ctx.Done():
		}
	}()
	return ctx, cancel
}

func (s *Server) openAPI() {
	cfg := huma.DefaultConfig("Gastown", s.cfg.Info.Version)
	cfg.Info.Description = "The control plane of Gastown: towns of coding agents, their rigs and beads."
	// The links to schemas that the default adds cost time and say nothing new.
	cfg.CreateHooks, cfg.SchemasPath, cfg.DocsPath, cfg.OpenAPIPath = nil, "", "", ""
	cfg.RejectUnknownQueryParameters = true
	format := huma.Format{Marshal: huma.DefaultJSONFormat.Marshal, Unmarshal: unmarshal}
	cfg.Formats = map[string]huma.Format{"application/json": format, "json": format}
	cfg.Transformers = []huma.Transformer{func(_ huma.Context, _ string, v any) (any, error) {
		switch e := v.(type) {
		case *huma.ErrorModel:
			return fromHuma(e).Problem, nil
		case *problem:
			return e.Problem, nil
		}
		return v, nil
	}}
	cfg.Components.SecuritySchemes = map[string]*huma.SecurityScheme{
		"bearer": {Type: "http", Scheme: "bearer", Description: "The token in the file admin.token of the server's data directory."},
	}
	s.api = humago.New(s.mux, cfg)
}
