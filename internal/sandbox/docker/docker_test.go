package docker

import (
	"archive/tar"
	"bytes"
	"context"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/moby/moby/client"

	"gastown/internal/sandbox"
	"gastown/internal/sandbox/sandboxtest"
)

// testImage is made once for all tests of this package.
type testImage struct {
	once sync.Once
	id   string
	err  error
}

// engine returns a client of the engine of DOCKER_HOST or the usual socket.
// Without one the test is skipped, unless GASTOWN_TEST_DOCKER says that there must be one.
func engine(t *testing.T) *client.Client {
	t.Helper()
	api, err := client.New(client.FromEnv)
	if err == nil {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		_, err = api.Ping(ctx, client.PingOptions{})
	}
	if err != nil && os.Getenv("GASTOWN_TEST_DOCKER") != "" {
		t.Fatalf("there must be a container engine: %v", err)
	}
	if err != nil {
		t.Skipf("NOT TESTED: there is no container engine: %v", err)
	}
	return api
}

func (i *testImage) make(t *testing.T, api *client.Client) string {
	t.Helper()
	i.once.Do(func() { i.id, i.err = makeImage(t, api) })
	if i.err != nil {
		t.Fatal(i.err)
	}
	return i.id
}

// makeImage imports an image with nothing in it but the static helper.
func makeImage(t *testing.T, api *client.Client) (string, error) {
	exe := filepath.Join(t.TempDir(), "helper")
	build := exec.Command("go", "build", "-o", exe, "./testdata/helper")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Logf("%s", out)
		return "", err
	}
	program, err := os.ReadFile(exe)
	if err != nil {
		return "", err
	}
	var layer bytes.Buffer
	w := tar.NewWriter(&layer)
	if err := w.WriteHeader(&tar.Header{Name: "helper", Mode: 0o755, Size: int64(len(program))}); err != nil {
		return "", err
	}
	if _, err := w.Write(program); err != nil {
		return "", err
	}
	if err := w.Close(); err != nil {
		return "", err
	}
	const name = "gastown-sandboxtest:latest"
	got, err := api.ImageImport(context.Background(), client.ImageImportSource{Source: &layer, SourceName: "-"}, name, client.ImageImportOptions{})
	if err != nil {
		return "", err
	}
	if _, err := io.Copy(io.Discard, got); err != nil {
		return "", err
	}
	return name, got.Close()
}

func TestConformance(t *testing.T) {
	api := engine(t)
	image := new(testImage)
	sandboxtest.Run(t, func(t *testing.T) sandboxtest.Setup {
		id := image.make(t, api)
		root, exchange := t.TempDir(), t.TempDir()
		return sandboxtest.Setup{
			Open: func(t *testing.T) sandbox.Driver {
				d, err := New(t.Context(), Config{Root: root, Image: id, Init: []string{"/helper", "init"}, Pids: 100, Memory: 256 << 20,
					Binds: []Bind{{Outside: exchange, Inside: "/exchange"}}})
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { shut(t, d) })
				return d
			},
			Drop:           func(t *testing.T, d sandbox.Driver) { shut(t, d.(*Driver)) },
			Helper:         "/helper",
			Exchange:       exchange,
			ExchangeInside: "/exchange",
		}
	})
}

func shut(t *testing.T, d *Driver) {
	t.Helper()
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
}
