package process

import (
	"os"
	"path/filepath"
	"strings"
)

// passed are the variables of the server that a sandbox sees as they are: where
// programs, certificates and modules are found, and how to write text. None is
// meant to hold a secret; values that carry one all the same (a password in a
// URL) are left out.
func passed() []string {
	return []string{
		"PATH", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "USER", "LOGNAME", "SHELL",
		"SSL_CERT_FILE", "SSL_CERT_DIR", "NODE_EXTRA_CA_CERTS",
		"GOPATH", "GOROOT", "GOPROXY", "GOSUMDB", "GOPRIVATE", "GONOPROXY", "GONOSUMDB", "GOFLAGS", "GOTOOLCHAIN",
	}
}

// environ builds a sandbox's environment out of the server's. HOME and TMPDIR
// lie on the disk; build caches are the user's own, so that gates are fast. A box
// has its own on the disk, and sees at most the modules of the user's.
func (d *Driver) environ(town string) []string {
	disk := d.disk(town)
	env := []string{"HOME=" + filepath.Join(disk, "home"), "TMPDIR=" + filepath.Join(disk, "tmp")}
	for _, k := range passed() {
		if v := os.Getenv(k); v != "" && !hasUserinfo(v) {
			env = append(env, k+"="+v)
		}
	}
	for _, kv := range caches(os.Getenv, os.UserHomeDir, os.UserCacheDir) {
		name, path, _ := strings.Cut(kv, "=")
		if d.box == nil || name == "GOMODCACHE" && d.box.sees(path) {
			env = append(env, kv)
		}
	}
	return env
}

// caches names the user's caches explicitly, since HOME no longer leads to them.
func caches(getenv func(string) string, home, cacheDir func() (string, error)) []string {
	var env []string
	add := func(k, v string) {
		if v != "" && v != "off" {
			env = append(env, k+"="+v)
		}
	}
	homeDir, homeErr := home()
	goCache := getenv("GOCACHE")
	if dir, err := cacheDir(); goCache == "" && err == nil {
		goCache = filepath.Join(dir, "go-build")
	}
	add("GOCACHE", goCache)
	modCache := getenv("GOMODCACHE")
	if gopath := filepath.SplitList(getenv("GOPATH")); modCache == "" && len(gopath) > 0 {
		modCache = filepath.Join(gopath[0], "pkg", "mod")
	} else if modCache == "" && homeErr == nil {
		modCache = filepath.Join(homeDir, "go", "pkg", "mod")
	}
	add("GOMODCACHE", modCache)
	npm := getenv("npm_config_cache")
	if npm == "" && homeErr == nil {
		npm = filepath.Join(homeDir, ".npm")
	}
	add("npm_config_cache", npm)
	return env
}

// hasUserinfo reports whether a value contains a URL with a user or password.
func hasUserinfo(v string) bool {
	for {
		_, rest, ok := strings.Cut(v, "://")
		if !ok {
			return false
		}
		host := rest
		if i := strings.IndexAny(rest, "/,| "); i >= 0 {
			host = rest[:i]
		}
		if strings.Contains(host, "@") {
			return true
		}
		v = rest
	}
}
