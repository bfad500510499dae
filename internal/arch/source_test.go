package arch

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

const (
	root   = "../.."
	module = "gastown"
)

// file is one Go file of the product.
type file struct {
	path  string // below the root, with slashes
	pkg   string // directory below the root
	test  bool   // a _test.go file
	lines int
	fset  *token.FileSet
	ast   *ast.File
}

// imports returns the import paths of a file; those of this module without its name.
func (f file) imports() (own, others []string) {
	for _, s := range f.ast.Imports {
		p := strings.Trim(s.Path.Value, `"`)
		if rest, ok := strings.CutPrefix(p, module+"/"); ok {
			own = append(own, rest)
		} else {
			others = append(others, p)
		}
	}
	return own, others
}

// line is where a node begins.
func (f file) line(n ast.Node) int { return f.fset.Position(n.Pos()).Line }

// generated reports whether a program wrote the file.
func (f file) generated() bool { return ast.IsGenerated(f.ast) }

var parsed = sync.OnceValues(parse)

// sources returns all Go files of the product.
func sources(t *testing.T) []file {
	t.Helper()
	files, err := parsed()
	if err != nil {
		t.Fatal(err)
	}
	if len(files) < 50 {
		t.Fatalf("found %d files: the tests look in the wrong place", len(files))
	}
	return files
}

func parse() ([]file, error) {
	var out []file
	fset := token.NewFileSet()
	for _, dir := range []string{"cmd", "internal"} {
		err := filepath.WalkDir(filepath.Join(root, dir), func(p string, e fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			if e.IsDir() && e.Name() == "testdata" {
				return filepath.SkipDir
			}
			if e.IsDir() || !strings.HasSuffix(p, ".go") {
				return nil
			}
			text, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			a, err := parser.ParseFile(fset, p, text, parser.ParseComments)
			if err != nil {
				return err
			}
			rel := filepath.ToSlash(strings.TrimPrefix(p, root+string(filepath.Separator)))
			out = append(out, file{path: rel, pkg: path.Dir(rel), test: strings.HasSuffix(rel, "_test.go"),
				lines: strings.Count(string(text), "\n"), fset: fset, ast: a})
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	return out, nil
}

// below reports whether a package is dir or below it.
func below(pkg, dir string) bool { return pkg == dir || strings.HasPrefix(pkg, dir+"/") }

func belowAny(pkg string, dirs []string) bool {
	for _, d := range dirs {
		if below(pkg, d) {
			return true
		}
	}
	return false
}
