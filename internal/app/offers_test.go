package app

import (
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"gastown/internal/agent"
	"gastown/internal/api"
	"gastown/internal/gateway"
	"gastown/internal/vault"
)

func TestWhatTheServerOffersFollowsWhatIsThere(t *testing.T) {
	bin := t.TempDir()
	t.Setenv("PATH", bin)
	v, err := vault.Open(filepath.Join(t.TempDir(), "vault"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { v.Close() })
	providers := gateway.NewProviders(v)
	for _, p := range []gateway.Provider{{Kind: gateway.KindOpenAI, Name: "nokey"}, {Kind: gateway.KindAnthropic, Name: "keyed", Key: "k"},
		{Kind: gateway.KindOpenAI, Name: "own", BaseURL: "https://models.example/v1"}} {
		if err := providers.Put(p); err != nil {
			t.Fatal(err)
		}
	}
	o := &offers{driver: driverProcess, providers: providers, log: slog.New(slog.DiscardHandler), presets: agent.Presets{
		"tool": {Name: "tool", Command: "tool", InstallHint: "get the tool", Model: agent.ModelConfig{NeedsProvider: true, Wire: api.WireChat}}}}
	before := o.now(t.Context())
	if got := before.Agents["tool"]; !got.NeedsProvider || got.Wire != api.WireChat || !strings.Contains(got.Missing, "get the tool") {
		t.Errorf("a missing program: %+v", got)
	}
	if err := os.WriteFile(filepath.Join(bin, "tool"), []byte("#!/bin/sh\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	after := o.now(t.Context())
	if after.Agents["tool"].Missing != "" || after.Place == before.Place {
		t.Errorf("after it was installed: %+v in %s, before in %s", after.Agents["tool"], after.Place, before.Place)
	}
	o.walls = []string{"a box"}
	if boxed := o.now(t.Context()); boxed.Place == after.Place {
		t.Error("other walls are the same place")
	}
	for name, unusable := range map[string]string{"nokey": "it has no key; gastown provider add openai nokey --key-file FILE", "keyed": "", "own": ""} {
		if got := after.Providers[name]; !strings.Contains(got.Unusable, unusable) || (unusable == "") != (got.Unusable == "") || len(got.Wires) == 0 {
			t.Errorf("%s: %+v", name, got)
		}
	}
	if len(after.Providers) != 3 {
		t.Errorf("providers: %+v", after.Providers)
	}
}
