package runner

import (
	"os"
	"path/filepath"
	"strings"

	"gastown/internal/errs"
	"gastown/internal/runner/apart"
)

// gateMarker marks the processes of a gate, wherever they move to.
const gateMarker = "GASTOWN_GATE"

// kept lists what agents and gates may see of the runner's environment: what
// programs need to be found and to find their caches. Nothing secret is on it;
// names that end in * stand for all with that beginning.
func kept() []string {
	return []string{"PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LC_*", "TZ", "TMPDIR", "XDG_*",
		"SSL_CERT_FILE", "SSL_CERT_DIR", "NODE_EXTRA_CA_CERTS",
		"HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy",
		"GOPATH", "GOCACHE", "GOMODCACHE", "GOPROXY", "GOFLAGS", "GOTOOLCHAIN", "GOSUMDB", "GONOSUMDB", "GOROOT",
		"CARGO_HOME", "RUSTUP_HOME", "JAVA_HOME", "NVM_DIR", "PYENV_ROOT", "VOLTA_HOME", "BUN_INSTALL"}
}

// toolEnv is the environment of agents and gates: no secrets, and a git that
// asks nothing, runs no hooks and reads no configuration but the repository's.
// own takes the place of what it names.
func toolEnv(own []string) []string {
	env := []string{"LANG=C.UTF-8"}
	for _, kv := range os.Environ() {
		name, _, _ := strings.Cut(kv, "=")
		for _, k := range kept() {
			prefix, wild := strings.CutSuffix(k, "*")
			if (name == k || wild && strings.HasPrefix(name, prefix)) && !replaced(own, name) {
				env = append(env, kv)
			}
		}
	}
	loopback := "127.0.0.1,localhost,::1"
	env = append(env, "NO_PROXY="+withDefault(os.Getenv("NO_PROXY"), loopback), "no_proxy="+withDefault(os.Getenv("no_proxy"), loopback),
		"TERM=dumb", "PAGER=cat", "GIT_PAGER=cat", "GIT_EDITOR=true", "GIT_TERMINAL_PROMPT=0",
		"GIT_CONFIG_NOSYSTEM=1", "GIT_CONFIG_GLOBAL=/dev/null")
	config := [][2]string{{"core.hooksPath", "/dev/null"}, {"core.fsmonitor", "false"}, {"protocol.ext.allow", "never"}}
	env = append(env, "GIT_CONFIG_COUNT=3")
	for i, c := range config {
		n := string(rune('0' + i))
		env = append(env, "GIT_CONFIG_KEY_"+n+"="+c[0], "GIT_CONFIG_VALUE_"+n+"="+c[1])
	}
	return append(env, own...)
}

// replaced says whether own has other values for a variable of the runner. With
// another home, what is found below the runner's is out of reach.
func replaced(own []string, name string) bool {
	for _, kv := range own {
		if k, _, _ := strings.Cut(kv, "="); k == name || k == "HOME" && strings.HasPrefix(name, "XDG_") {
			return true
		}
	}
	return false
}

// privateEnv gives a cell that can't use the runner's home and temporary directory
// its own, in rooms of it. Homes outlive runs.
func (r *Runner) privateEnv(cell apart.Cell, room, homeRoom string) ([]string, error) {
	if !r.apart.Private() {
		return nil, nil
	}
	home, tmp := filepath.Join(homeRoom, roomHome), filepath.Join(room, roomTmp)
	for _, dir := range []string{filepath.Dir(home), filepath.Dir(tmp)} {
		if err := cell.Room(dir); err != nil {
			return nil, errs.Wrap(errs.Unavailable, err, "a room for a home")
		}
	}
	for _, dir := range []string{home, tmp} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return nil, errs.Wrap(errs.Unavailable, err, "a home")
		}
		if err := cell.Give(dir); err != nil {
			return nil, errs.Wrap(errs.Unavailable, err, "giving a home away")
		}
	}
	return []string{"HOME=" + home, "TMPDIR=" + tmp}, nil
}

func withDefault(list, add string) string {
	if list == "" {
		return add
	}
	return list + "," + add
}
