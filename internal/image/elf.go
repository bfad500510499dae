package image

import (
	"debug/elf"
	"os"
	"path/filepath"
	"strings"

	"gastown/internal/errs"
)

// needs returns the loader and the libraries that a program names, as paths on
// this machine. A file that is no program of this system needs none.
func needs(file string) ([]string, error) {
	f, err := elf.Open(file)
	if err != nil {
		return nil, nil // a script, data, or a program of another system
	}
	defer func() {
		// It was only read.
		_ = f.Close()
	}()
	var out []string
	for _, p := range f.Progs {
		if p.Type != elf.PT_INTERP {
			continue
		}
		raw := make([]byte, p.Filesz)
		if _, err := p.ReadAt(raw, 0); err != nil {
			return nil, errs.Wrap(errs.Invalid, err, "reading the loader of %s", file)
		}
		loader := strings.TrimRight(string(raw), "\x00")
		if _, err := os.Stat(loader); err != nil {
			return nil, nil // a prebuilt program for another C library, as npm packages carry
		}
		out = append(out, loader)
	}
	names, err := f.ImportedLibraries()
	if err != nil {
		return out, nil // static
	}
	for _, name := range names {
		at, ok := library(name, f.Machine)
		if !ok && strings.Contains(file, "/node_modules/") {
			return nil, nil // npm packages bring modules for many systems, and programs of which they can do without
		}
		if !ok {
			return nil, errs.New(errs.Invalid, "%s needs the library %s, which was not found", file, name)
		}
		out = append(out, at)
	}
	return out, nil
}

// library finds a shared library where the loader looks by default.
func library(name string, machine elf.Machine) (string, bool) {
	triple := map[elf.Machine]string{elf.EM_X86_64: "x86_64-linux-gnu", elf.EM_AARCH64: "aarch64-linux-gnu"}[machine]
	for _, dir := range []string{"/lib/" + triple, "/usr/lib/" + triple, "/lib64", "/usr/lib64", "/lib", "/usr/lib", "/usr/local/lib"} {
		at := filepath.Join(dir, name)
		f, err := elf.Open(at)
		if err != nil {
			continue
		}
		fits := f.Machine == machine
		// It was only read.
		_ = f.Close()
		if fits {
			return at, true
		}
	}
	return "", false
}
