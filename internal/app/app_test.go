package app

import (
	"os"
	"path/filepath"
	"testing"

	"gastown/internal/errs"
	"gastown/internal/town"
)

func TestListeningBeyondThisMachineIsRefusedUnlessAskedFor(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		listen        string
		tls, insecure bool
		ok            bool
	}{
		{"127.0.0.1:7070", false, false, true}, {"localhost:0", false, false, true}, {"[::1]:7070", false, false, true}, {"127.0.0.1:0", true, false, true},
		{":7070", false, false, false}, {"0.0.0.0:7070", false, false, false}, {"[::]:0", false, false, false},
		{"192.168.1.5:7070", false, false, false}, {"example.com:7070", false, false, false},
		{"127.0.0.1.example.com:0", false, false, false}, {"7070", false, true, false}, {"", false, false, false},
		{":7070", false, true, true}, {":7070", true, true, true},
		{":7070", true, false, true}, {"192.168.1.5:7070", true, false, true},
	} {
		cfg := Config{Listen: c.listen, InsecureListen: c.insecure}
		if c.tls {
			cfg.TLSCert, cfg.TLSKey = "cert.pem", "key.pem"
		}
		if err := cfg.check(); (err == nil) != c.ok || err != nil && !errs.Is(err, errs.Invalid) {
			t.Errorf("%+v: %v", c, err)
		}
	}
}

func TestWhatCannotBeServedIsRefusedBeforeTheDirectoryIsTouched(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(*Config){
		"an unknown driver":             func(c *Config) { c.Sandbox = "jail" },
		"a certificate without its key": func(c *Config) { c.TLSCert = "cert.pem" },
		"a key without its certificate": func(c *Config) { c.TLSKey = "key.pem" },
		"an unknown setting":            func(c *Config) { c.Settings = town.Settings{"no.such": "x"} },
		"a setting without sense":       func(c *Config) { c.Settings = town.Settings{"lease": "soon"} },
		"a webhook that is no URL":      func(c *Config) { c.Settings = town.Settings{"notify.url": "hooks"} },
		"a notify command that is gone": func(c *Config) { c.NotifyCommand = filepath.Join(c.Data, "no-such-program") },
		"an address that others reach":  func(c *Config) { c.Listen = "0.0.0.0:0" },
	} {
		cfg := Config{Data: filepath.Join(t.TempDir(), "data"), Listen: "127.0.0.1:0"}
		change(&cfg)
		a, err := Open(t.Context(), cfg)
		if !errs.Is(err, errs.Invalid) {
			t.Errorf("%s: %v", name, err)
		}
		if err == nil {
			err = a.Close()
			t.Errorf("%s was opened (%v)", name, err)
		}
		if _, err := os.Stat(cfg.Data); !os.IsNotExist(err) {
			t.Errorf("%s: the data directory was made", name)
		}
	}
}
