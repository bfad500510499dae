// Package docker is the sandbox driver on the Docker Engine API (Docker 20.10
// and later, and Podman's socket): one container per town, its disk a named
// volume.
//
// Names and labels, where <root> is a hash of the driver's root directory:
//
//	container  gastown-<root>-<town>.<generation>   labels gastown.root, gastown.town, gastown.generation, gastown.image
//	volume     gastown-<root>-<town>                mounted at /town; the same labels without a generation
//	<root directory>/<town>/gen.json                the record, see package record
//	<root directory>/<town>/runner.log              the end of what the last container said
//
// A container exists only while its generation runs, or until its end is
// recorded: then it is removed. Containers have no restart policy, because the
// town decides. They have a read-only root, no network unless one is named, no
// capability but those that the first process needs to become another user, and limits of memory, processor and processes.
//
// The first process is the image's gastown (see package inside). It reads the
// token from its standard input, which this driver attaches before the start, and
// says on its output whether the command started. So a Start that returns has
// started something, and a command that can't run uses no generation up.
//
// Deaths are told by the engine's event stream. When it breaks, as when the
// engine is restarted, all running generations are looked at again.
package docker

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	cerrdefs "github.com/containerd/errdefs"
	"github.com/moby/moby/client"

	"gastown/internal/errs"
	"gastown/internal/sandbox"
	"gastown/internal/sandbox/record"
)

const driverName = "docker"

const (
	labelRoot       = "gastown.root"
	labelTown       = "gastown.town"
	labelGeneration = "gastown.generation"
	labelImage      = "gastown.image" // by digest or id
)

// Disk is where the town's disk is inside a container.
const Disk = "/town"

// callTime bounds one call to the engine.
const callTime = 30 * time.Second

// Bind shows a directory of this machine inside, read-only for what it is but
// sockets and named pipes in it work.
type Bind struct{ Outside, Inside string }

// Config says how to run containers. Root, Image and Init are required.
type Config struct {
	Root    string   // directory of the records, for one control plane
	Host    string   // engine, as in DOCKER_HOST; "" reads the environment, then takes the usual socket
	Image   string   // name, digest or id; never pulled
	Init    []string // first process of the image, which starts the command after "--"
	Binds   []Bind   // at least the directory with the server's socket
	Network string   // name of an engine's network; "" is none
	CPUs    float64  // 0 is no limit
	Memory  int64    // bytes, swap included; 0 is no limit
	Pids    int64    // processes and threads; 0 is no limit
	Log     *slog.Logger
}

// Driver runs sandboxes as containers. Make it with New.
type Driver struct {
	cfg    Config
	hash   string
	api    *client.Client
	book   *record.Book
	log    *slog.Logger
	exits  chan sandbox.Ref
	cancel context.CancelFunc
	base   context.Context // ends with Close
	tasks  sync.WaitGroup
}

var _ sandbox.Driver = (*Driver)(nil)

// New returns the driver of a root, which it creates. It asks the engine whether
// it is there and has the image: Unavailable and Invalid say so. Containers left
// running by an earlier driver are watched again. Call Close when done.
func New(ctx context.Context, cfg Config) (*Driver, error) {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if err := os.MkdirAll(cfg.Root, 0o700); err != nil {
		return nil, errs.Wrap(errs.Internal, err, "sandbox: create the root directory")
	}
	root, err := filepath.Abs(cfg.Root)
	if err == nil {
		root, err = filepath.EvalSymlinks(root)
	}
	if err != nil {
		return nil, errs.Wrap(errs.Internal, err, "sandbox: resolve the root directory")
	}
	book, err := record.Open(root, cfg.Log)
	if err != nil {
		return nil, err
	}
	opts := []client.Opt{client.FromEnv}
	if cfg.Host != "" {
		opts = append(opts, client.WithHost(cfg.Host))
	}
	api, err := client.New(opts...)
	if err != nil {
		return nil, errs.Wrap(errs.Invalid, err, "sandbox: the address of the container engine")
	}
	sum := sha256.Sum256([]byte(root))
	d := &Driver{cfg: cfg, hash: hex.EncodeToString(sum[:6]), api: api, book: book, log: cfg.Log, exits: make(chan sandbox.Ref, 256)}
	if err := d.check(ctx); err != nil {
		return nil, err
	}
	d.base, d.cancel = context.WithCancel(context.WithoutCancel(ctx))
	d.tasks.Go(d.watch)
	return d, nil
}

// check asks the engine for the image.
func (d *Driver) check(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	if _, err := d.api.Ping(ctx, client.PingOptions{}); err != nil {
		return errs.New(errs.Unavailable, "sandbox: the container engine does not answer: %v", err).
			WithHint("start Docker or Podman, or name its socket in DOCKER_HOST")
	}
	_, err := d.image(ctx)
	return err
}

// image is what the configured name stands for now: its digest where it came from
// a registry, else its id. A container made from that is of this very image,
// whatever the name means a moment later.
func (d *Driver) image(ctx context.Context) (string, error) {
	got, err := d.api.ImageInspect(ctx, d.cfg.Image)
	if cerrdefs.IsNotFound(err) {
		return "", errs.New(errs.Invalid, "sandbox: the container engine has no image %q", d.cfg.Image).
			WithHint("build it with 'make image', or pull it and name it with --image")
	}
	if err != nil {
		return "", errs.Wrap(errs.Unavailable, err, "sandbox: look for the image")
	}
	return pinned(d.cfg.Image, got.ID, got.RepoDigests), nil
}

// pinned chooses the digest of the repository that was asked for.
func pinned(name, id string, digests []string) string {
	repository, _, _ := strings.Cut(name, "@")
	if i := strings.LastIndex(repository, ":"); i > strings.LastIndex(repository, "/") {
		repository = repository[:i]
	}
	for _, d := range digests {
		if of, _, ok := strings.Cut(d, "@"); ok && of == repository {
			return d
		}
	}
	return id
}

// Close ends the watching. Containers go on.
func (d *Driver) Close() error {
	d.cancel()
	d.tasks.Wait()
	return errs.Wrap(errs.Internal, d.api.Close(), "sandbox: close the engine's client")
}

// Exits implements sandbox.Driver.
func (d *Driver) Exits() <-chan sandbox.Ref { return d.exits }

// Isolation implements sandbox.Driver.
func (d *Driver) Isolation() string {
	if d.cfg.Network == "" || d.cfg.Network == "none" {
		return ""
	}
	return "agents reach everything that the container network " + d.cfg.Network + " reaches"
}

func (d *Driver) name(town string, generation int64) string {
	return d.volume(town) + "." + strconv.FormatInt(generation, 10)
}

func (d *Driver) volume(town string) string { return "gastown-" + d.hash + "-" + town }

func (d *Driver) labels(town string) map[string]string {
	return map[string]string{labelRoot: d.hash, labelTown: town}
}

func (d *Driver) filter(town string) client.Filters {
	f := make(client.Filters).Add("label", labelRoot+"="+d.hash)
	if town != "" {
		f.Add("label", labelTown+"="+town)
	}
	return f
}

func refOf(r record.Record) sandbox.Ref {
	return sandbox.Ref{Driver: driverName, Town: r.Town, Generation: r.Generation, ID: r.Container}
}

// engineError says that the engine did not do what it was asked.
func engineError(err error, what string, args ...any) error {
	if err == nil {
		return nil
	}
	kind := errs.Unavailable
	if cerrdefs.IsInvalidArgument(err) {
		kind = errs.Invalid
	}
	return errs.Wrap(kind, err, what, args...)
}
