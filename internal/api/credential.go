package api

// Credential is how the server reaches a repository. It stays on the server,
// encrypted, and is never returned.
type Credential struct {
	Kind           string `json:"kind" enum:"token,basic,ssh-key,github-app" doc:"token, basic and github-app are for https, ssh-key for ssh."`
	Secret         string `json:"secret" doc:"The token, the password, or the private key (PEM)." maxLength:"16384"`
	Username       string `json:"username,omitempty" doc:"For basic; with a token if the forge wants another than x-access-token."`
	AppID          string `json:"app_id,omitempty" doc:"For github-app: the App's id or client id."`
	InstallationID string `json:"installation_id,omitempty" doc:"For github-app."`
	API            string `json:"api,omitempty" doc:"For github-app: base URL of the API; default https://api.github.com."`
	KnownHosts     string `json:"known_hosts,omitempty" doc:"For ssh-key: host keys as in a known_hosts file. Without it the first host's key is recorded and expected from then on." maxLength:"65536"`
}

// CredentialInfo is what is shown of a credential.
type CredentialInfo struct {
	Kind           string   `json:"kind"`
	Username       string   `json:"username,omitempty"`
	Fingerprint    string   `json:"fingerprint,omitempty" doc:"Of an ssh key."`
	AppID          string   `json:"app_id,omitempty"`
	InstallationID string   `json:"installation_id,omitempty"`
	API            string   `json:"api,omitempty"`
	HostKeys       []string `json:"host_keys,omitempty" doc:"Recorded keys of the ssh host: host, type and fingerprint."`
}
