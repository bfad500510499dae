package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/moby/moby/client"

	"gastown/internal/image"
)

// runImage builds the image of sandboxes from what this machine has.
func runImage(args []string, out, errOut io.Writer) int {
	fs := flag.NewFlagSet("image", flag.ContinueOnError)
	fs.SetOutput(errOut)
	tag := fs.String("tag", "gastown:local", "name of the image in the container engine")
	file := fs.String("o", "", "write a tar to this file instead of giving the image to the engine")
	agents := fs.String("agents", "", "directory with the node_modules of agents, as 'make agents' installs them")
	program := fs.String("gastown", "bin/gastown", "the static gastown to put in")
	asJSON := fs.Bool("json", false, "print the report as JSON")
	if err := fs.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return 0
		}
		return 2
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	cfg := image.Config{Gastown: *program, Agents: *agents}
	var r built
	var err error
	if *file != "" {
		r, err = imageFile(cfg, *file)
	} else {
		r, err = imageEngine(ctx, cfg, *tag)
	}
	if err == nil && *asJSON {
		err = json.NewEncoder(out).Encode(r)
	} else if err == nil {
		_, err = fmt.Fprintf(out, "%s: %d files, %.1f MB, with %s\n", r.Image, r.Files, float64(r.Bytes)/1e6, strings.Join(r.Programs, " "))
		if len(r.Missing) > 0 {
			fmt.Fprintf(errOut, "not on this machine, so not in the image: %s\n", strings.Join(r.Missing, " "))
		}
	}
	if err != nil {
		fmt.Fprintln(errOut, "gastown-lab image:", err)
		return 1
	}
	return 0
}

// built is what runImage prints.
type built struct {
	Image string `json:"image"`
	ID    string `json:"id,omitempty"`
	image.Report
}

func imageFile(cfg image.Config, name string) (r built, err error) {
	f, err := os.Create(name)
	if err != nil {
		return r, err
	}
	r.Image = name
	r.Report, err = image.Build(cfg, f)
	return r, errors.Join(err, f.Close())
}

// imageEngine streams the image into the engine, as docker import does.
func imageEngine(ctx context.Context, cfg image.Config, tag string) (r built, err error) {
	api, err := client.New(client.FromEnv)
	if err != nil {
		return r, err
	}
	defer func() { err = errors.Join(err, api.Close()) }()
	pr, pw := io.Pipe()
	go func() {
		var err error
		r.Report, err = image.Build(cfg, pw)
		pw.CloseWithError(err)
	}()
	changes := []string{"ENTRYPOINT " + entrypoint(), "WORKDIR /town"}
	got, err := api.ImageImport(ctx, client.ImageImportSource{Source: pr, SourceName: "-"}, tag, client.ImageImportOptions{Changes: changes})
	if err != nil {
		return r, fmt.Errorf("the container engine: %w", errors.Join(err, pr.CloseWithError(err)))
	}
	if _, err := io.Copy(io.Discard, got); err != nil {
		return r, errors.Join(err, got.Close())
	}
	if err := got.Close(); err != nil {
		return r, err
	}
	info, err := api.ImageInspect(ctx, tag)
	r.Image, r.ID = tag, info.ID
	return r, err
}

func entrypoint() string {
	b, err := json.Marshal(image.Init())
	if err != nil {
		panic(err) // a list of strings
	}
	return string(b)
}
