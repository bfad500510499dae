package app

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"

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

// Containers says how the driver docker runs sandboxes.
type Containers struct {
	Image   string  // name, digest or id; never pulled
	Network string  // of the engine; "" is none: agents reach the server and nothing else
	CPUs    float64 // 0 is no limit
	Memory  int64   // bytes; 0 is no limit
	Pids    int64   // 0 is no limit
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

// openDriver makes the driver that the configuration names. The socket for
// sandboxes must be open.
func (a *App) openDriver(ctx context.Context) error {
	d, err := newDriver(ctx, a.cfg, a.dir, filepath.Dir(a.inside.Addr().String()), a.log)
	if err == nil {
		a.driver = d
	}
	return err
}

func newDriver(ctx context.Context, cfg Config, dir, socketDir string, log *slog.Logger) (driver, error) {
	if cfg.driver() == driverProcess {
		return process.New(filepath.Join(dir, "sandboxes"), log)
	}
	c := cfg.Containers
	binds := []docker.Bind{{Outside: socketDir, Inside: insideSocket}}
	if cfg.PresetDir != "" {
		presets, err := filepath.Abs(cfg.PresetDir)
		if err != nil {
			return nil, errs.Wrap(errs.Invalid, err, "the directory of presets")
		}
		binds = append(binds, docker.Bind{Outside: presets, Inside: insidePresets})
	}
	return docker.New(ctx, docker.Config{Root: filepath.Join(dir, "containers"), Image: c.Image, Init: image.Init(), Binds: binds,
		Network: c.Network, CPUs: c.CPUs, Memory: c.Memory, Pids: c.Pids, Log: log})
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
		return nil
	case driverDocker:
		if c.Containers.Image == "" {
			return errs.New(errs.Invalid, "sandboxes in containers need an image").WithHint("build one with 'make image' and give --image gastown:local")
		}
		return nil
	}
	return errs.New(errs.Invalid, "there is no sandbox driver %q", c.Sandbox).WithHint("use process or docker")
}

// runner is what runs inside every sandbox.
func (a *App) runner(program string) (command, env []string) {
	socket, presets := a.inside.Addr().String(), a.cfg.PresetDir
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
	if a.cfg.driver() == driverDocker {
		command = append(command, "--apart="+string(apart.UID))
	}
	return command, env
}

// socketDir is the directory of the socket for sandboxes. Containers see the
// whole directory, so nothing else may be in it.
func (a *App) socketDir() (string, error) {
	if a.cfg.driver() != driverDocker {
		return a.dir, nil
	}
	dir := filepath.Join(a.dir, "inside")
	return dir, errs.Wrap(errs.Unavailable, errors.Join(os.MkdirAll(dir, 0o711), os.Chmod(dir, 0o711)), "making a directory for the socket for sandboxes")
}

// socketMode keeps others from the socket for sandboxes. In containers another
// user dials it, and it is behind a door that agents can't open; on this machine
// the data directory is closed to others.
func (a *App) socketMode() os.FileMode {
	if a.cfg.driver() == driverDocker {
		return 0o666
	}
	return 0o600
}
