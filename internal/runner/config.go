package runner

import (
	"bytes"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"gastown/internal/agent"
	"gastown/internal/errs"
	"gastown/internal/runner/apart"
)

// Config says how to run. Server, Disk and Token are required.
type Config struct {
	// Server is the base URL: http://host:port, https://..., or
	// unix:///path/to/socket.
	Server string
	// Disk is the directory that outlives sleep; absolute.
	Disk string
	// Token is the sandbox token (see ReadToken).
	Token string
	// SelfExe is the path of this program, for presets that run it.
	SelfExe string
	// Version is told to the server.
	Version string
	// Presets are the known agents; nil means the built-in ones and those of PresetDir.
	Presets   agent.Presets
	PresetDir string
	// Start starts agents; nil means agent.Launch.
	Start agent.Starter
	// Apart is what stands between runs, and between them and the runner; "" is apart.None.
	Apart  apart.Kind
	Log    *slog.Logger // nil: slog.Default()
	Timing Timing
}

// Timing are the runner's own limits; zero values mean the defaults.
type Timing struct {
	LockWait     time.Duration // for the old generation to leave the disk; default 20 s
	Contact      time.Duration // without an answer of the server: checkpoint and exit; default 10 min
	Poll         time.Duration // of one long poll, above the server's 30 s; default 45 s
	BackoffMin   time.Duration // default 100 ms
	BackoffMax   time.Duration // default 5 s
	Answer       time.Duration // how long a tool asks the server again that does not answer; default 40 s
	VerdictGrace time.Duration // for a turn to end after an accepted verdict; default 10 s
	StopGrace    time.Duration // between SIGTERM and SIGKILL; default 2 s
	Shutdown     time.Duration // for everything after SIGTERM to the runner; default 8 s
	Flush        time.Duration // how long transcript events gather; default 100 ms
}

func (t Timing) withDefaults() Timing {
	for _, f := range []struct {
		d   *time.Duration
		def time.Duration
	}{
		{&t.LockWait, 20 * time.Second}, {&t.Contact, 10 * time.Minute}, {&t.Poll, 45 * time.Second},
		{&t.BackoffMin, 100 * time.Millisecond}, {&t.BackoffMax, 5 * time.Second},
		{&t.Answer, 40 * time.Second}, {&t.VerdictGrace, 10 * time.Second}, {&t.StopGrace, 2 * time.Second},
		{&t.Shutdown, 8 * time.Second}, {&t.Flush, 100 * time.Millisecond},
	} {
		if *f.d <= 0 {
			*f.d = f.def
		}
	}
	return t
}

func (c Config) withDefaults() (Config, error) {
	switch {
	case c.Token == "":
		return c, errs.New(errs.Invalid, "the runner got no token").WithHint("the driver passes it on file descriptor 3")
	case !filepath.IsAbs(c.Disk):
		return c, errs.New(errs.Invalid, "the runner's disk must be an absolute path")
	}
	if c.Log == nil {
		c.Log = slog.Default()
	}
	if c.Start == nil {
		c.Start = agent.Launch
	}
	if c.Presets == nil {
		p, err := agent.LoadPresets(c.PresetDir)
		if err != nil {
			return c, err
		}
		c.Presets = p
	}
	c.Timing = c.Timing.withDefaults()
	return c, nil
}

// keeper makes what keeps agents apart.
func (c Config) keeper() (*apart.Keeper, error) {
	if c.Apart == apart.Bwrap {
		return apart.NewBoxes(c.Disk, c.SelfExe)
	}
	return apart.New(c.Apart)
}

// maxToken bounds what is read from the token's descriptor.
const maxToken = 64 << 10

// ReadToken reads the sandbox token from a file descriptor and closes it.
func ReadToken(fd int) (string, error) {
	f := os.NewFile(uintptr(fd), "token")
	if f == nil {
		return "", errs.New(errs.Invalid, "file descriptor %d is not open", fd)
	}
	data, err := io.ReadAll(io.LimitReader(f, maxToken+1))
	if err = errors.Join(err, f.Close()); err != nil {
		return "", errs.Wrap(errs.Invalid, err, "reading the token from file descriptor %d", fd)
	}
	data = bytes.TrimSpace(data)
	if len(data) == 0 || len(data) > maxToken || bytes.ContainsAny(data, "\r\n\x00 ") {
		return "", errs.New(errs.Invalid, "file descriptor %d holds no usable token", fd)
	}
	return string(data), nil
}
