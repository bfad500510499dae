// Package app puts a server together: store, vault, repositories, sandbox
// driver, hall and HTTP server over one data directory.
//
//	DIR/admin.token      the admin token, 0600
//	DIR/server.json      where the running server listens: {"url","pid"}
//	DIR/gastown.db       the store; DIR/gastown.lock is held while it is open
//	DIR/vault/           provider keys, git credentials, signing keys, encrypted
//	DIR/vault.key        the key of the vault, 0600, unless Config.KeyFile is elsewhere
//	DIR/hub/             the bare repositories of all rigs
//	DIR/sandboxes/       the disks of all towns
//	DIR/inside/runner.sock  where sandboxes dial; alone in its directory, which they see
//
// Open takes the directory (a second server on it is refused and told who holds
// it), Serve works until its context ends, Close gives everything back. Sandboxes
// go on without the server; Drain ends them before. All three may be called once.
//
// Sandboxes reach the server through a unix socket in the data directory and not
// through the port: the path stays the same over restarts, whatever the port.
package app

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"io/fs"
	"log/slog"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"gastown/internal/agent"
	"gastown/internal/doctor"
	"gastown/internal/errs"
	"gastown/internal/gateway"
	"gastown/internal/git/hub"
	"gastown/internal/hall"
	"gastown/internal/scrub"
	"gastown/internal/server"
	"gastown/internal/store"
	"gastown/internal/town"
	"gastown/internal/vault"
)

// Files in the data directory that other programs of this machine read.
const (
	ServerFile = "server.json"
	TokenFile  = "admin.token"
)

// EnvPresets tells a runner where more agent presets are.
const EnvPresets = "GASTOWN_PRESETS"

// Location is the content of server.json.
type Location struct {
	URL string `json:"url"`
	PID int    `json:"pid"`
}

// Config says how to serve. Data and Listen are required.
type Config struct {
	Data           string
	Listen         string        // host:port; port 0 takes a free one
	Settings       town.Settings // the server's defaults
	KeyFile        string        // of the vault; "" is vault.key in Data
	Sandbox        string        // the driver: "process", which is the default, or "docker"
	Containers     Containers    // for "docker"
	Isolation      string        // for "process": "auto", "bwrap" or "none", which is the default
	Show           []string      // for "process" with bubblewrap: paths of this machine that sandboxes see, read-only
	Network        string        // of sandboxes: "none", which is the default, and agents reach the server and nothing else; for "process" with bubblewrap "host"; for "docker" a network of the engine
	PresetDir      string        // more agent presets; "" for none
	NotifyCommand  string        // program that gets notices on its stdin; "" for none
	NotifyPrivate  bool          // webhooks may go to private addresses
	TLSCert        string        // files; both or none
	TLSKey         string
	InsecureListen bool   // allow listening beyond loopback without TLS
	Program        string // runs inside sandboxes; "" is this program
	Version        string
	Log            *slog.Logger
}

// App is an open server.
type App struct {
	cfg     Config
	log     *slog.Logger
	dir     string
	lock    *store.Lock
	listen  net.Listener // for people
	inside  net.Listener // for sandboxes
	driver  driver
	known   *scrub.Set // the secrets of the vault, for what leaves
	boxed   bool       // the driver closes sandboxes in on this machine,
	nests   bool       // and in them agents from each other and the runner
	gate    gate
	url     string
	created bool
	started time.Time

	restoring sync.Mutex            // held by a restore, and by Close
	failed    chan error            // capacity 1: why there is no server behind the gate any more
	serving   context.Context       // of Serve; set before the gate opens
	current   atomic.Pointer[parts] // what a restore replaces
}

// parts are what stands over the files of the data directory: a restore replaces
// all of it at once.
type parts struct {
	app    *App
	store  *store.SQLite
	vault  *vault.Vault
	hub    *hub.Hub
	hall   *hall.Hall
	server *server.Server
	offers *offers
	saving sync.Mutex // held while a backup is made
}

// Open takes the data directory and the port, and makes all parts. Nothing runs
// before Serve. On failure everything is given back.
func Open(ctx context.Context, cfg Config) (_ *App, err error) {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if err := cfg.check(); err != nil {
		return nil, err
	}
	cfg.Settings = maps.Clone(cfg.Settings)
	if cfg.NotifyCommand != "" {
		if cfg.Settings == nil {
			cfg.Settings = town.Settings{}
		}
		cfg.Settings["notify.command"] = "true"
	}
	known := &scrub.Set{}
	cfg.Log = slog.New(scrub.NewHandler(known, cfg.Log.Handler()))
	a := &App{cfg: cfg, log: cfg.Log, known: known, started: time.Now(), failed: make(chan error, 1)}
	defer func() {
		if err == nil {
			return
		}
		if closeErr := a.Close(); closeErr != nil {
			a.log.Warn("giving back what was opened", "err", closeErr)
		}
	}()
	if a.dir, err = dataDir(cfg.Data); err != nil {
		return nil, err
	}
	// The lock comes first: whoever holds it owns the directory.
	if a.lock, err = store.TakeLock(a.dir, time.Now()); err != nil {
		return nil, err
	}
	if err = finishSwap(a.dir); err != nil {
		return nil, err
	}
	sweepTemp(a.dir, a.log)
	if err = a.listeners(); err != nil {
		return nil, err
	}
	if err = a.openDriver(ctx); err != nil {
		return nil, err
	}
	return a, a.open(ctx)
}

// open makes the parts over the files of the data directory. On failure they are
// given back.
func (a *App) open(ctx context.Context) (err error) {
	p := &parts{app: a}
	defer func() {
		if err == nil {
			a.current.Store(p)
			return
		}
		if closeErr := p.close(); closeErr != nil {
			a.log.Warn("giving back what was opened", "err", closeErr)
		}
	}()
	if p.store, err = store.Open(ctx, a.dir, store.Options{Lock: a.lock, Changed: a.healthChanged}); err != nil {
		return err
	}
	if p.vault, err = vault.OpenWith(filepath.Join(a.dir, vaultDir), a.cfg.KeyFile); err != nil {
		return err
	}
	if err = a.learn(p.vault); err != nil {
		return err
	}
	if p.hub, err = hub.Open(filepath.Join(a.dir, hubDir), p.vault, a.log); err != nil {
		return err
	}
	return p.wire()
}

// healthChanged tells of the state of the store, once per change.
func (a *App) healthChanged(h store.Health) {
	switch {
	case !h.Writable():
		a.log.Error("the store takes no writes", "state", h.State, "cause", h.Cause, "hint", h.Hint)
	case h.Check == store.CheckRunning:
		a.log.Warn("the last stop was not clean, or a write failed: the database is checked in the background")
	case h.Check == store.CheckOK:
		a.log.Info("the database is whole and takes writes")
	default:
		a.log.Info("the store takes writes", "check", h.Check)
	}
}

// dataDir makes the directory and resolves links, so that a path in it is one.
func dataDir(dir string) (string, error) {
	if dir == "" {
		return "", errs.New(errs.Invalid, "no data directory is given").WithHint("give --data DIR")
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", errs.Wrap(errs.Invalid, err, "creating the data directory")
	}
	abs, err := filepath.Abs(dir)
	if err == nil {
		abs, err = filepath.EvalSymlinks(abs)
	}
	return abs, errs.Wrap(errs.Invalid, err, "the data directory")
}

func (c Config) check() error {
	if err := c.checkDriver(); err != nil {
		return err
	}
	if (c.TLSCert == "") != (c.TLSKey == "") {
		return errs.New(errs.Invalid, "TLS needs a certificate and a key").WithHint("give both --tls-cert and --tls-key")
	}
	if c.NotifyCommand != "" {
		if _, err := exec.LookPath(c.NotifyCommand); err != nil {
			return errs.New(errs.Invalid, "the notify command can't be run: %v", err).WithHint("give --notify-command the path of a program, without arguments")
		}
	}
	for key, value := range c.Settings {
		if err := town.CheckSetting(town.LevelServer, key, value); err != nil {
			return err
		}
	}
	return c.checkListen()
}

// checkListen refuses addresses that others can reach without TLS: the token
// would travel openly.
func (c Config) checkListen() error {
	host, _, err := net.SplitHostPort(c.Listen)
	if err != nil {
		return errs.New(errs.Invalid, "%q is not an address to listen on", c.Listen).WithHint("give --listen like 127.0.0.1:7070")
	}
	ip := net.ParseIP(host)
	if c.InsecureListen || c.TLSCert != "" || host == "localhost" || ip != nil && ip.IsLoopback() {
		return nil
	}
	return errs.New(errs.Invalid, "%s can be reached from other machines, to which the token would travel in the clear", c.Listen).
		WithHint("listen on 127.0.0.1, give --tls-cert and --tls-key, or give --insecure-listen if you trust everybody on the way")
}

// wire makes hall and server over the files.
func (p *parts) wire() error {
	a := p.app
	signer, err := server.LoadSigner(p.vault)
	if err != nil {
		return err
	}
	token, created, err := server.LoadOrCreateAdminToken(a.dir)
	if err != nil {
		return err
	}
	a.created = a.created || created
	a.known.Put("admin", token)
	presets, err := agent.LoadPresets(a.cfg.PresetDir)
	if err != nil {
		return err
	}
	program, err := a.cfg.program()
	if err != nil {
		return err
	}
	limits := a.limits()
	boot := strings.ToLower(rand.Text()[:16])
	outside := &hall.Outside{
		Driver: a.driver, Hub: p.hub, Vault: p.vault, Tokens: tokens{signer},
		Notifier: discreet{a.messenger(p.vault), a.known},
		Runner:   func(hall.TownRef, int64) (command, env []string) { return a.runner(program) },
	}
	p.offers = &offers{presets: presets, providers: gateway.NewProviders(p.vault), driver: a.cfg.driver(),
		walls: append([]string{a.driver.Isolation()}, a.cfg.Show...), place: a.driver, log: a.log}
	p.offers.current.Store(p.offers.now(context.Background()))
	p.hall = hall.New(hall.Config{
		Store: p.store, Perform: outside, Boot: boot, Server: a.cfg.Settings, Offers: p.offers.current.Load, Limits: limits,
		Driver: a.driver, Hub: p.hub, Log: a.log,
	})
	p.server, err = server.New(server.Config{
		Hall: p.hall, Store: p.store, Hub: p.hub, Secrets: learning{p.vault, a.known}, Scrub: a.known, Signer: signer, Presets: presets,
		Info: server.Info{Version: a.cfg.Version, Boot: boot, StartedAt: a.started, Data: a.dir, Driver: a.cfg.driver(),
			Isolation: a.driver.Isolation(), Listen: a.url, MaxAwake: limits.MaxAwake},
		AdminToken: token,
		Offered:    p.lookForOffers,
		Metrics:    p.hall.Metrics(),
		Health:     p.store.Health,
		Backup:     p.backup,
		Restore:    a.restore,
		TLSCert:    a.cfg.TLSCert, TLSKey: a.cfg.TLSKey,
		Git:   p.gitHandler,
		Ready: p.loopRuns,
		Doctor: doctor.New(doctor.Config{Store: p.store, Hall: p.hall, Hub: p.hub, Driver: a.driver, Isolation: a.driver.Isolation(), Health: p.store.Health,
			TranscriptKeep: a.duration("transcript.retention"), Log: a.log}),
		Log: a.log,
	})
	return err
}

// maxLoopLate is how late the loop that watches alarms may be before the server
// calls itself not ready.
const maxLoopLate = time.Minute

// loopRuns says whether the loop that watches alarms runs. While a step of it is
// under way it has no next time.
func (p *parts) loopRuns(context.Context) error {
	if next := p.hall.Next(); !next.IsZero() {
		if late := time.Since(next); late > maxLoopLate {
			return errs.New(errs.Unavailable, "the loop that watches alarms is %s late", late.Round(time.Second))
		}
	}
	return nil
}

// tokens lets the hall have sandbox tokens from the server's signer.
type tokens struct{ signer *server.Signer }

// Sandbox implements hall.Tokens.
func (t tokens) Sandbox(_ context.Context, ref hall.TownRef, generation int64, issued town.Time) ([]byte, error) {
	return []byte(t.signer.Token(ref.ID, ref.Owner, generation, issued)), nil
}

func (a *App) messenger(v *vault.Vault) *hall.Messenger {
	m := &hall.Messenger{Vault: v, AllowPrivate: a.cfg.NotifyPrivate}
	if a.cfg.NotifyCommand != "" {
		m.Command = []string{a.cfg.NotifyCommand}
	}
	return m
}

// URL returns where people reach the server.
func (a *App) URL() string { return a.url }

// TokenPath returns the file with the admin token, and whether Open made it.
func (a *App) TokenPath() (path string, created bool) {
	return filepath.Join(a.dir, TokenFile), a.created
}

// Isolation says what agents can reach that they should not; "" for nothing.
func (a *App) Isolation() string { return a.driver.Isolation() }

// ReadLocation reads what a server left in its data directory.
func ReadLocation(dir string) (Location, error) {
	raw, err := os.ReadFile(filepath.Join(dir, ServerFile))
	if errors.Is(err, fs.ErrNotExist) {
		return Location{}, errs.New(errs.Unavailable, "no server was started with the data directory %s", dir).
			WithHint("start one with: gastown serve --data DIR; or set GASTOWN_URL and GASTOWN_TOKEN")
	}
	if err != nil {
		return Location{}, errs.Wrap(errs.Unavailable, err, "reading where the server is")
	}
	var l Location
	if json.Unmarshal(raw, &l) != nil || l.URL == "" {
		return Location{}, errs.New(errs.Unavailable, "%s can't be read", filepath.Join(dir, ServerFile)).
			WithHint("restart the server, or set GASTOWN_URL and GASTOWN_TOKEN")
	}
	return l, nil
}

// writeLocation leaves it there, whole or not at all.
func (a *App) writeLocation() error {
	b, err := json.Marshal(Location{URL: a.url, PID: os.Getpid()})
	if err != nil {
		return errs.Wrap(errs.Internal, err, "encoding the server's address")
	}
	path := filepath.Join(a.dir, ServerFile)
	if err := os.WriteFile(path+".new", append(b, '\n'), 0o600); err != nil {
		return errs.Wrap(errs.Unavailable, err, "writing the server's address")
	}
	return errs.Wrap(errs.Unavailable, os.Rename(path+".new", path), "writing the server's address")
}

func (a *App) limits() store.Limits {
	return store.Limits{MaxAwake: a.number("max_awake"), MaxStarting: a.number("max_starting")}
}
