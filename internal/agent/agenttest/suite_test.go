package agenttest_test

import (
	"context"
	"errors"
	"os"
	"os/signal"
	"syscall"
	"testing"

	"gastown/internal/agent"
	"gastown/internal/agent/agenttest"
	"gastown/internal/agent/scripted"
)

// TestMain makes the test program serve as the scripted agent too.
func TestMain(m *testing.M) {
	if len(os.Args) == 3 && os.Args[1] == "agent" && os.Args[2] == "scripted" {
		ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
		defer stop()
		var exit *scripted.ExitError
		if err := scripted.Main(ctx, os.Stdin, os.Stdout, os.Stderr); errors.As(err, &exit) {
			os.Exit(exit.Code)
		}
		return
	}
	os.Exit(m.Run())
}

func TestScriptedAgentConforms(t *testing.T) {
	presets, err := agent.LoadPresets("")
	if err != nil {
		t.Fatal(err)
	}
	preset, err := presets.Get("scripted")
	if err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	agenttest.Run(t, func(t *testing.T, _ agenttest.Task) agent.Spec {
		return agent.Spec{Preset: preset, SelfExe: self, Env: []string{"PATH=" + os.Getenv("PATH"), "XDG_DATA_HOME=" + t.TempDir()}}
	})
}

func TestScriptedAgentsShareAProcess(t *testing.T) {
	presets, err := agent.LoadPresets("")
	if err != nil {
		t.Fatal(err)
	}
	preset := presets["scripted"]
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	home := t.TempDir()
	agenttest.RunShared(t, func(t *testing.T, _ agenttest.Task) agent.Spec {
		return agent.Spec{Preset: preset, SelfExe: self, Env: []string{"PATH=" + os.Getenv("PATH"), "XDG_DATA_HOME=" + home}}
	})
}
