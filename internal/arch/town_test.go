package arch

import (
	"go/ast"
	"slices"
	"testing"
)

// pure are the packages of the standard library that the domain may use: none of
// them reads a clock, a file, the network or a source of randomness by itself.
var pure = []string{"bytes", "cmp", "encoding/json", "errors", "fmt", "io", "iter", "maps", "math", "math/bits", "net/netip", "net/url", "regexp", "slices", "sort",
	"strconv", "strings", "time", "unicode", "unicode/utf8"}

// impure are the functions of these packages that do.
var impure = map[string][]string{
	"time": {"Now", "Since", "Until", "Sleep", "After", "AfterFunc", "Tick", "NewTimer", "NewTicker", "Local", "LoadLocation"},
	"fmt":  {"Print", "Printf", "Println", "Scan", "Scanf", "Scanln"},
}

func TestTheDomainIsPure(t *testing.T) {
	t.Parallel()
	for _, f := range sources(t) {
		if f.pkg != "internal/town" || f.test {
			continue
		}
		_, others := f.imports()
		for _, p := range others {
			if !slices.Contains(pure, p) {
				t.Errorf("%s imports %s", f.path, p)
			}
		}
		ast.Inspect(f.ast, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.GoStmt:
				t.Errorf("%s:%d starts a goroutine", f.path, f.line(n))
			case *ast.ChanType, *ast.SelectStmt:
				t.Errorf("%s:%d uses a channel", f.path, f.line(n))
			case *ast.SelectorExpr:
				if x, ok := n.X.(*ast.Ident); ok && slices.Contains(impure[x.Name], n.Sel.Name) {
					t.Errorf("%s:%d uses %s.%s", f.path, f.line(n), x.Name, n.Sel.Name)
				}
			}
			return true
		})
	}
}
