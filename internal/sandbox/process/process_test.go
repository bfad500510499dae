package process

import (
	"os"
	"testing"

	"gastown/internal/sandbox"
	"gastown/internal/sandbox/inside"
	"gastown/internal/sandbox/sandboxtest"
)

func TestMain(m *testing.M) {
	if len(os.Args) > 2 && os.Args[1] == firstProcess {
		os.Exit(inside.Main(os.Args[2:], os.Stdout))
	}
	if len(os.Args) == 3 && os.Args[1] == dials {
		os.Exit(dial(os.Args[2]))
	}
	sandboxtest.HelperMain()
	os.Exit(m.Run())
}

func setup(t *testing.T) sandboxtest.Setup {
	root := t.TempDir()
	return sandboxtest.Setup{
		Open:     func(t *testing.T) sandbox.Driver { return open(t, root) },
		Drop:     func(t *testing.T, d sandbox.Driver) { shut(t, d.(*Driver)) },
		Helper:   os.Args[0],
		Exchange: t.TempDir(),
	}
}

func open(t *testing.T, root string) *Driver {
	t.Helper()
	d, err := New(t.Context(), Config{Root: root})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { shut(t, d) })
	return d
}

func shut(t *testing.T, d *Driver) {
	t.Helper()
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestConformance(t *testing.T) {
	t.Parallel()
	sandboxtest.Run(t, setup)
}
