package app

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"slices"

	"gastown/internal/errs"
	"gastown/internal/image"
	"gastown/internal/runner/apart"
	"gastown/internal/runner/wire"
	"gastown/internal/sandbox"
	"gastown/internal/sandbox/docker"
	"gastown/internal/sandbox/process"
)

// The sandbox drivers that there are.
const (
	driverProcess = "process"
	driverDocker  = "docker"
)

// The networks of sandboxes that every driver knows, besides those of an engine.
const (
	networkNone = "none"
	networkHost = "host"
)

// Containers says how the driver docker runs sandboxes. The limits are those of
// process, too, where a cgroup is delegated to the server.
type Containers struct {
	Image  string  // name, digest or id; never pulled
	CPUs   float64 // 0 is no limit
	Memory int64   // bytes; 0 is no limit
	Pids   int64   // 0 is no limit
}

// driver is a sandbox driver that can be given back.
type driver interface {
	sandbox.Driver
	Close() error
}

// Where things of this machine are in a container.
const (
	insideSocket  = sandbox.Door + "/server"
	insidePresets = "/etc/gastown/presets"
)

// openDriver makes the driver that the configuration names, and lets what it
// starts use the socket for sandboxes, which must be open.
func (a *App) openDriver(ctx context.Context) error {
	program, err := a.cfg.program()
	if err != nil {
		return err
	}
	socket := a.inside.Addr().String()
	d, err := newDriver(ctx, a.cfg, a.dir, filepath.Dir(socket), program, a.log)
	if err != nil {
		return err
	}
	a.driver = d
	if p, ok := d.(*process.Driver); ok {
		a.boxed, a.nests = p.Boxed(), p.Nests()
	}
	if a.cfg.driver() != driverDocker && !(a.boxed && os.Geteuid() == 0) {
		return nil
	}
	// Another user dials it. On this machine the data directory is closed to others.
	return errs.Wrap(errs.Unavailable, os.Chmod(socket, 0o666), "opening the socket for sandboxes to them")
}

// program is what runs inside sandboxes that are not containers.
func (c Config) program() (string, error) {
	if c.Program != "" {
		return c.Program, nil
	}
	self, err := os.Executable()
	return self, errs.Wrap(errs.Internal, err, "finding this program")
}

func newDriver(ctx context.Context, cfg Config, dir, socketDir, program string, log *slog.Logger) (driver, error) {
	presets := ""
	if cfg.PresetDir != "" {
		var err error
		if presets, err = filepath.Abs(cfg.PresetDir); err != nil {
			return nil, errs.Wrap(errs.Invalid, err, "the directory of presets")
		}
	}
	if cfg.driver() == driverProcess {
		return newProcess(ctx, cfg, dir, socketDir, presets, program, log)
	}
	c := cfg.Containers
	binds := []docker.Bind{{Outside: socketDir, Inside: insideSocket}}
	if presets != "" {
		binds = append(binds, docker.Bind{Outside: presets, Inside: insidePresets})
	}
	network := cfg.Network
	if network == networkNone {
		network = ""
	}
	return docker.New(ctx, docker.Config{Root: filepath.Join(dir, "containers"), Image: c.Image, Init: image.Init(), Binds: binds,
		Network: network, CPUs: c.CPUs, Memory: c.Memory, Pids: c.Pids, Log: log})
}

func newProcess(ctx context.Context, cfg Config, dir, socketDir, presets, program string, log *slog.Logger) (driver, error) {
	pc := process.Config{
		Root: filepath.Join(dir, "sandboxes"), Isolation: process.Isolation(cfg.Isolation), Init: []string{program, "sandbox-init"},
		Binds: []process.Bind{{Outside: socketDir, Inside: insideSocket}}, Show: cfg.Show, Hide: []string{dir},
		Network: cfg.Network == networkHost, Log: log,
		CPUs: cfg.Containers.CPUs, Memory: cfg.Containers.Memory, Pids: cfg.Containers.Pids,
	}
	if presets != "" {
		pc.Show = append(slices.Clone(pc.Show), presets)
	}
	if home, err := os.UserHomeDir(); err == nil && filepath.IsAbs(home) {
		pc.Hide = append(pc.Hide, filepath.Clean(home))
	}
	for _, key := range []string{cfg.KeyFile, cfg.TLSKey} {
		if key == "" {
			continue
		}
		// Where it lies in a directory of the system, agents that are the same user could read it.
		abs, err := filepath.Abs(key)
		if err != nil {
			return nil, errs.Wrap(errs.Internal, err, "hiding the server's keys from sandboxes")
		}
		pc.Hide = append(pc.Hide, abs)
	}
	return process.New(ctx, pc)
}

func (c Config) driver() string {
	if c.Sandbox == "" {
		return driverProcess
	}
	return c.Sandbox
}

// checkDriver refuses a driver that does not exist.
func (c Config) checkDriver() error {
	switch c.driver() {
	case driverProcess:
		return c.checkProcess()
	case driverDocker:
		if c.Containers.Image == "" {
			return errs.New(errs.Invalid, "sandboxes in containers need an image").WithHint("build one with 'make image' and give --image gastown:local")
		}
		return nil
	}
	return errs.New(errs.Invalid, "there is no sandbox driver %q", c.Sandbox).WithHint("use process or docker")
}

// checkProcess refuses an isolation or a network that process does not have.
func (c Config) checkProcess() error {
	switch process.Isolation(c.Isolation) {
	case "", process.Auto, process.Bwrap, process.None:
	default:
		return errs.New(errs.Invalid, "there is no isolation %q", c.Isolation).WithHint("use auto, bwrap or none")
	}
	switch c.Network {
	case "", networkNone, networkHost:
		return nil
	}
	return errs.New(errs.Invalid, "sandboxes that are processes can't join the network %q", c.Network).WithHint("use none or host")
}

// runner is what runs inside every sandbox.
func (a *App) runner(program string) (command, env []string) {
	socket, presets := a.inside.Addr().String(), a.cfg.PresetDir
	if a.boxed {
		socket = filepath.Join(insideSocket, filepath.Base(socket))
	}
	if a.cfg.driver() == driverDocker {
		program, socket = image.Program, filepath.Join(insideSocket, filepath.Base(socket))
		if presets != "" {
			presets = insidePresets
		}
	}
	env = []string{wire.EnvServer + "=unix://" + socket}
	if presets != "" {
		env = append(env, EnvPresets+"="+presets)
	}
	command = []string{program, "runner"}
	switch {
	case a.cfg.driver() == driverDocker:
		command = append(command, "--apart="+string(apart.UID))
	case a.nests:
		command = append(command, "--apart="+string(apart.Bwrap))
	}
	return command, env
}
