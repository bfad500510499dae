package cli

import (
	"strings"

	"github.com/spf13/cobra"

	"gastown/internal/api"
	"gastown/internal/errs"
)

// credentialFlags say how a repository is reached. The secret itself comes from a
// file, stdin or the environment: what is on a command line everybody can read.
type credentialFlags struct {
	file, env, user, appID, installation, api, hosts string
}

func (f *credentialFlags) flags(cmd *cobra.Command) {
	fl := cmd.Flags()
	fl.StringVar(&f.file, "credential-file", "", "file with a token, a password (with --credential-user), an ssh key, or a GitHub App's key (with --app-id); - for stdin")
	fl.StringVar(&f.env, "credential-env", "", "name of the environment variable that holds it")
	fl.StringVar(&f.user, "credential-user", "", "the credential is the password of this user")
	fl.StringVar(&f.appID, "app-id", "", "the credential is the private key of the GitHub App with this id or client id")
	fl.StringVar(&f.installation, "installation-id", "", "installation of the GitHub App")
	fl.StringVar(&f.api, "github-api", "", "base URL of the GitHub API (default: https://api.github.com)")
	fl.StringVar(&f.hosts, "known-hosts-file", "", "file with the keys of the ssh host (default: the first one met is recorded)")
}

// credential reads what the flags name, nil for nothing. Which kind it is follows
// from the flags and from its first line.
func (a *invocation) credential(f credentialFlags) (*api.Credential, error) {
	var c api.Credential
	var err error
	switch {
	case f.file != "" && f.env != "":
		return nil, errs.New(errs.Invalid, "--credential-file and --credential-env contradict each other")
	case f.file != "":
		c.Secret, err = a.secretFile("credential", f.file)
	case f.env != "":
		if c.Secret = strings.TrimSpace(a.env.Getenv(f.env)); c.Secret == "" {
			err = errs.New(errs.Invalid, "the environment variable %s is empty or not set", short40(f.env)).WithHint("--credential-env takes the name of a variable, not the secret")
		}
	case f.user != "" || f.appID != "" || f.installation != "" || f.api != "" || f.hosts != "":
		err = errs.New(errs.Invalid, "a credential needs its secret, too").WithHint("give --credential-file or --credential-env")
	default:
		return nil, nil
	}
	if err == nil && f.hosts != "" {
		c.KnownHosts, err = a.textFile("known hosts", f.hosts, maxSecret)
	}
	if err != nil {
		return nil, err
	}
	c.Username, c.AppID, c.InstallationID, c.API = f.user, f.appID, f.installation, f.api
	switch {
	case f.appID != "" || f.installation != "" || f.api != "":
		c.Kind = "github-app"
	case strings.HasPrefix(c.Secret, "-----BEGIN "):
		c.Kind = "ssh-key"
	case f.user != "":
		c.Kind = "basic"
	default:
		c.Kind = "token"
	}
	return &c, nil
}

// credentialText says in a line what is known of a rig's credential.
func credentialText(r api.Rig) string {
	c := r.Credential
	if c == nil {
		if strings.HasPrefix(r.URL, "ssh://") || !strings.Contains(r.URL, "://") && strings.Contains(r.URL, "@") {
			return "none: the ssh keys of the server's user"
		}
		return "none"
	}
	text := c.Kind
	for _, s := range []string{c.Username, c.Fingerprint} {
		if s != "" {
			text += " " + cell(s)
		}
	}
	if c.AppID != "" {
		text += " " + cell(c.AppID) + ", installation " + cell(c.InstallationID)
	}
	if c.API != "" {
		text += " at " + cell(c.API)
	}
	for _, k := range c.HostKeys {
		text += "; host " + cell(k)
	}
	if c.Kind == "missing" {
		return "missing: give it again with gastown rig set " + cell(r.Name) + " --credential-file FILE"
	}
	return text + "; kept by the server"
}

// pushText says whether upstream takes pushes, and what to do if not.
func (a *invocation) pushText(r api.Rig) string {
	switch r.Push.State {
	case "ok":
		return "allowed, " + a.ago(r.Push.CheckedAt)
	case "refused":
		return "refused: it gets no work. " + cell(r.Push.Error) + "; asked again at " + r.Push.NextTry.Local().Format("15:04:05") +
			", or now with: gastown retry " + cell(r.Push.Subject) + " --town " + cell(r.Town) + "; another credential: gastown rig set " + cell(r.Name) + " --credential-file FILE"
	}
	return "is asked before the next work begins"
}
