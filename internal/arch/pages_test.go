package arch

import (
	"flag"
	"fmt"
	"go/ast"
	"go/token"
	"os"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"testing"

	"gastown/internal/town"
)

var update = flag.Bool("update", false, "write the generated parts of the pages in docs/ anew")

const (
	beginMark = "<!-- made by: make docs -->\n"
	endMark   = "<!-- end of what was made -->\n"
)

// page compares the generated part of a page in docs/ with what it should be,
// or replaces it with -update.
func page(t *testing.T, name, want string) {
	t.Helper()
	path := filepath.Join(root, "docs", name)
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	head, rest, ok1 := strings.Cut(string(raw), beginMark)
	got, tail, ok2 := strings.Cut(rest, endMark)
	if !ok1 || !ok2 {
		t.Fatalf("docs/%s lacks the marks around its generated part", name)
	}
	if *update {
		if err := os.WriteFile(path, []byte(head+beginMark+want+endMark+tail), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if got != want {
		t.Errorf("docs/%s is out of date: make docs", name)
	}
}

func TestSettingsPage(t *testing.T) {
	t.Parallel()
	var b strings.Builder
	b.WriteString("| Setting | Default | May be given for | Meaning |\n|---|---|---|---|\n")
	for _, s := range town.Table() {
		def := "(empty)"
		if s.Default != "" {
			def = "`" + s.Default + "`"
		}
		var levels []string
		for _, l := range s.Levels {
			levels = append(levels, string(l))
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s |\n", s.Key, def, strings.Join(levels, ", "), strings.ReplaceAll(s.Help, "|", "\\|"))
	}
	page(t, "settings.md", b.String())
}

func TestJSONPage(t *testing.T) {
	t.Parallel()
	var b strings.Builder
	for _, f := range sources(t) {
		if f.pkg != "internal/api" || f.test {
			continue
		}
		for _, d := range f.ast.Decls {
			g, ok := d.(*ast.GenDecl)
			if !ok || g.Tok != token.TYPE {
				continue
			}
			for _, s := range g.Specs {
				ts := s.(*ast.TypeSpec)
				if st, ok := ts.Type.(*ast.StructType); ok {
					writeType(&b, ts.Name.Name, g.Doc.Text(), st)
				}
			}
		}
	}
	page(t, "json.md", strings.TrimPrefix(b.String(), "\n"))
}

func writeType(b *strings.Builder, name, doc string, st *ast.StructType) {
	fmt.Fprintf(b, "\n## %s\n\n%s\n| Field | Type | Meaning |\n|---|---|---|\n", name, doc)
	for _, f := range st.Fields.List {
		if f.Tag == nil {
			continue
		}
		text, err := strconv.Unquote(f.Tag.Value)
		if err != nil {
			continue
		}
		tag := reflect.StructTag(text)
		field, options, _ := strings.Cut(tag.Get("json"), ",")
		if field == "" || field == "-" {
			continue
		}
		meaning := tag.Get("doc")
		if enum := tag.Get("enum"); enum != "" {
			meaning = strings.TrimSpace(meaning + " One of " + strings.ReplaceAll(enum, ",", ", ") + ".")
		}
		if strings.Contains(options, "omit") {
			meaning = strings.TrimSpace(meaning + " May be absent.")
		}
		fmt.Fprintf(b, "| `%s` | %s | %s |\n", field, typeName(f.Type), strings.ReplaceAll(meaning, "|", "\\|"))
	}
}

// typeName is a type in words of JSON.
func typeName(e ast.Expr) string {
	switch e := e.(type) {
	case *ast.StarExpr:
		return typeName(e.X)
	case *ast.ArrayType:
		return "list of " + typeName(e.Elt)
	case *ast.MapType:
		return "object of " + typeName(e.Value)
	case *ast.SelectorExpr:
		if e.Sel.Name == "Time" {
			return "time"
		}
		return "any"
	case *ast.Ident:
		switch e.Name {
		case "string":
			return "text"
		case "bool":
			return "true/false"
		case "int", "int64":
			return "number"
		case "T":
			return "any"
		}
		return "[" + e.Name + "](#" + strings.ToLower(e.Name) + ")"
	}
	return "any"
}

// Every address of the API stands in docs/api.md.
func TestAPIPageNamesEveryAddress(t *testing.T) {
	t.Parallel()
	text := read(t, "docs/api.md")
	found := 0
	for _, f := range sources(t) {
		if f.pkg != "internal/server" || f.test {
			continue
		}
		ast.Inspect(f.ast, func(n ast.Node) bool {
			lit, ok := n.(*ast.CompositeLit)
			if !ok {
				return true
			}
			method, path := member(lit, "method"), member(lit, "path")
			if method == "" || path == "" {
				return true
			}
			found++
			// "/beads/{bead}/" is completed by a variable; its prefix is enough.
			if !strings.Contains(text, "`"+method+" "+path) {
				t.Errorf("docs/api.md does not name %s %s (%s:%d)", method, path, f.path, f.line(lit))
			}
			return true
		})
	}
	if found < 20 {
		t.Errorf("found %d operations: the test looks for the wrong form", found)
	}
}

// member returns the text of a member of a literal; of a sum its first part.
func member(lit *ast.CompositeLit, name string) string {
	for _, e := range lit.Elts {
		kv, ok := e.(*ast.KeyValueExpr)
		if !ok {
			continue
		}
		if k, ok := kv.Key.(*ast.Ident); ok && k.Name == name {
			return literal(kv.Value)
		}
	}
	return ""
}

func literal(e ast.Expr) string {
	switch e := e.(type) {
	case *ast.BasicLit:
		if s, err := strconv.Unquote(e.Value); err == nil {
			return s
		}
	case *ast.BinaryExpr:
		return literal(e.X)
	}
	return ""
}

// Every command and every flag stands in docs/cli.md.
func TestCLIPageNamesEveryCommandAndFlag(t *testing.T) {
	t.Parallel()
	text := read(t, "docs/cli.md")
	found := 0
	for _, f := range sources(t) {
		if f.pkg != "internal/cli" || f.test {
			continue
		}
		ast.Inspect(f.ast, func(n ast.Node) bool {
			call, ok := n.(*ast.CallExpr)
			if !ok {
				return true
			}
			want := mention(call)
			if want != "" {
				found++
			}
			if !strings.Contains(text, want) {
				t.Errorf("docs/cli.md does not name %s (%s:%d)", want, f.path, f.line(call))
			}
			return true
		})
	}
	if found < 60 {
		t.Errorf("found %d commands and flags: the test looks for the wrong form", found)
	}
}

// mention returns what a call of the flag library or of invocation.command
// gives people to type; "" for other calls and for hidden commands.
func mention(call *ast.CallExpr) string {
	fn, ok := call.Fun.(*ast.SelectorExpr)
	if !ok {
		return ""
	}
	switch name := fn.Sel.Name; {
	case strings.HasSuffix(name, "Var") && len(call.Args) >= 4, strings.HasSuffix(name, "VarP") && len(call.Args) >= 5:
		if flag := literal(call.Args[1]); flag != "" {
			return "--" + flag
		}
	case name == "command" || name == "rigAction":
		use := literal(call.Args[0])
		if use == "runner" || use == "scripted" {
			return ""
		}
		return use
	}
	return ""
}

func read(t *testing.T, path string) string {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join(root, path))
	if err != nil {
		t.Fatal(err)
	}
	return string(raw)
}
