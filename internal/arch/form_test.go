package arch

import (
	"go/ast"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

const (
	maxFile     = 800 // lines
	maxFunction = 100 // lines
)

func TestFilesAndFunctionsAreShort(t *testing.T) {
	t.Parallel()
	for _, f := range sources(t) {
		if f.generated() {
			continue
		}
		if f.lines > maxFile {
			t.Errorf("%s has %d lines; split it below %d", f.path, f.lines, maxFile)
		}
		for _, d := range f.ast.Decls {
			if fn, ok := d.(*ast.FuncDecl); ok {
				if n := f.fset.Position(fn.End()).Line - f.line(fn) + 1; n > maxFunction {
					t.Errorf("%s:%d: %s has %d lines; split it below %d", f.path, f.line(fn), fn.Name.Name, n, maxFunction)
				}
			}
		}
	}
}

// A test that sleeps is slow, or wrong on a busy machine. In a bubble of
// testing/synctest a sleep only moves the virtual clock.
func TestNoTestSleeps(t *testing.T) {
	t.Parallel()
	for _, f := range sources(t) {
		if _, others := f.imports(); !f.test && !belowAny(f.pkg, testOnly) || slices.Contains(others, "testing/synctest") {
			continue
		}
		ast.Inspect(f.ast, func(n ast.Node) bool {
			if s, ok := n.(*ast.SelectorExpr); ok && s.Sel.Name == "Sleep" {
				if x, ok := s.X.(*ast.Ident); ok && x.Name == "time" {
					t.Errorf("%s:%d sleeps; wait for a signal, or use testing/synctest", f.path, f.line(s))
				}
			}
			return true
		})
	}
}

func TestNothingRunsBeforeMain(t *testing.T) {
	t.Parallel()
	for _, f := range sources(t) {
		for _, d := range f.ast.Decls {
			if fn, ok := d.(*ast.FuncDecl); ok && fn.Recv == nil && fn.Name.Name == "init" {
				t.Errorf("%s:%d has an init function", f.path, f.line(fn))
			}
		}
	}
}

func TestEveryPackageSaysWhatItIs(t *testing.T) {
	t.Parallel()
	said := map[string]bool{}
	for _, f := range sources(t) {
		said[f.pkg] = said[f.pkg] || f.ast.Doc != nil
	}
	for pkg, ok := range said {
		if !ok {
			t.Errorf("package %s has no package comment", pkg)
		}
	}
}

// unfinished matches marks of work that was put off. It is written so that it
// does not match itself.
var unfinished = regexp.MustCompile(`\b(TO` + `DO|FIX` + `ME|XX` + `X)\b`)

func TestNothingIsLeftForLater(t *testing.T) {
	t.Parallel()
	skip := []string{".git", "bin", "build", "data", "node_modules"}
	kinds := []string{".go", ".md", ".sql", ".toml", ".sh", ".svg", ".html", ".js", ".css", ".yml", ""}
	err := filepath.WalkDir(root, func(p string, e fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case e.IsDir() && slices.Contains(skip, e.Name()):
			return filepath.SkipDir
		case !e.Type().IsRegular() || !slices.Contains(kinds, filepath.Ext(p)):
			return nil
		}
		text, err := os.ReadFile(p)
		if err != nil {
			return err
		}
		n := 0
		for line := range strings.Lines(string(text)) {
			n++
			if m := unfinished.FindString(line); m != "" {
				t.Errorf("%s:%d has a %s: do it, or write it down where it is seen", filepath.ToSlash(p), n, m)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
