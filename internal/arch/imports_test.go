package arch

import (
	"slices"
	"strings"
	"testing"
)

// mayImport lists, for packages with few friends, all of ours that they may
// import. The longest matching directory decides.
var mayImport = map[string][]string{
	"internal/errs":           {},
	"internal/api":            {},
	"internal/town":           {"internal/errs"},
	"internal/vault":          {"internal/errs"},
	"internal/backup":         {"internal/errs"},
	"internal/store":          {"internal/errs", "internal/store"},
	"internal/sandbox":        {"internal/errs", "internal/sandbox", "internal/runner/apart"},
	"internal/git":            {"internal/errs", "internal/git", "internal/vault"},
	"internal/gateway":        {"internal/errs", "internal/git", "internal/api", "internal/gateway"},
	"internal/agent":          {"internal/errs", "internal/api", "internal/agent"},
	"internal/agent/scripted": {},
	"internal/runner":         {"internal/errs", "internal/town", "internal/agent", "internal/git", "internal/runner", "internal/scrub"},
	"internal/runner/wire":    {"internal/town"},
	"internal/hall":           {"internal/errs", "internal/town", "internal/store", "internal/sandbox", "internal/git/hub"},
	"internal/client":         {"internal/errs", "internal/api"},
	"internal/doctor":         {"internal/errs", "internal/api", "internal/town", "internal/store", "internal/sandbox", "internal/git/hub"},
	"internal/arch":           {"internal/town"},
	"cmd/gastown":             {"internal/cli"},
}

// mayNotImport lists what the others may not.
var mayNotImport = map[string][]string{
	"internal/server": {"internal/cli", "internal/app", "internal/client", "internal/sandbox", "internal/agent/scripted"},
	"internal/app":    {"internal/cli", "internal/client"},
	"internal/cli":    {"internal/server", "internal/hall", "internal/store", "internal/git", "internal/gateway", "internal/vault", "internal/sandbox/process"},
}

// lab is for developers; the product does not know it.
var lab = []string{"cmd/gastown-lab", "internal/sim", "internal/lab", "internal/bench"}

// testOnly are packages that only tests and the lab import.
var testOnly = []string{"internal/store/storetest", "internal/sandbox/sandboxtest", "internal/agent/agenttest", "internal/arch"}

// onlyIn says where a library of others may be imported.
var onlyIn = map[string][]string{
	"modernc.org/sqlite":                     {"internal/store"},
	"github.com/pressly/goose":               {"internal/store"},
	"github.com/coder/acp-go-sdk":            {"internal/agent"},
	"github.com/modelcontextprotocol/go-sdk": {"internal/agent", "internal/runner", "internal/server"},
	"github.com/danielgtaylor/huma":          {"internal/server"},
	"github.com/prometheus":                  {"internal/server"},
	"github.com/golang-jwt/jwt":              {"internal/server", "internal/git/credential"},
	"golang.org/x/crypto":                    {"internal/git/credential"},
	"github.com/spf13":                       {"internal/cli", "cmd"},
	"pgregory.net/rapid":                     {}, // tests alone
	"testing":                                {"internal/store/storetest", "internal/sandbox/sandboxtest", "internal/agent/agenttest"},
}

// rule returns the entry of the longest directory that holds pkg.
func rule(table map[string][]string, pkg string) (allowed []string, ok bool) {
	best := ""
	for dir := range table {
		if below(pkg, dir) && len(dir) > len(best) {
			best = dir
		}
	}
	allowed, ok = table[best]
	return allowed, ok
}

func TestImportsPointDown(t *testing.T) {
	t.Parallel()
	for _, f := range sources(t) {
		if f.test {
			continue
		}
		own, _ := f.imports()
		for _, p := range own {
			// A conformance suite may use what it tests, and so may what is beside it.
			if allowed, ok := rule(mayImport, f.pkg); ok && !belowAny(p, allowed) {
				t.Errorf("%s imports %s; %s may import only %s", f.path, p, f.pkg, strings.Join(allowed, ", "))
			}
			if denied, ok := rule(mayNotImport, f.pkg); ok && belowAny(p, denied) {
				t.Errorf("%s imports %s; %s must not", f.path, p, f.pkg)
			}
		}
	}
}

func TestTheProductDoesNotKnowTheLabOrTestPackages(t *testing.T) {
	t.Parallel()
	for _, f := range sources(t) {
		own, _ := f.imports()
		for _, p := range own {
			if belowAny(p, lab) && !belowAny(f.pkg, lab) {
				t.Errorf("%s imports %s; only the lab may", f.path, p)
			}
			if belowAny(p, testOnly) && !f.test && !belowAny(f.pkg, testOnly) && !belowAny(f.pkg, lab) {
				t.Errorf("%s imports %s; only tests and the lab may", f.path, p)
			}
		}
	}
}

func TestALibraryIsWrappedAtOnePlace(t *testing.T) {
	t.Parallel()
	for _, f := range sources(t) {
		if f.test || belowAny(f.pkg, lab) {
			continue
		}
		_, others := f.imports()
		for _, p := range others {
			if dirs, ok := rule(onlyIn, p); ok && !belowAny(f.pkg, dirs) {
				t.Errorf("%s imports %s; only these may: %s", f.path, p, strings.Join(dirs, ", "))
			}
		}
	}
}

// Rules about packages that are gone would hold for ever.
func TestTheTablesNamePackagesThatExist(t *testing.T) {
	t.Parallel()
	var pkgs []string
	for _, f := range sources(t) {
		pkgs = append(pkgs, f.pkg)
	}
	for _, table := range []map[string][]string{mayImport, mayNotImport} {
		for dir := range table {
			if !slices.ContainsFunc(pkgs, func(p string) bool { return below(p, dir) }) {
				t.Errorf("the table has a rule for %s, which does not exist", dir)
			}
		}
	}
}
