package api

import "time"

// Gate is a command that a merge candidate must pass.
type Gate struct {
	Name      string `json:"name"`
	Command   string `json:"command"`
	TimeoutMS int64  `json:"timeout_ms,omitempty" minimum:"0" doc:"0: the setting gate.timeout."`
}

// Rig is a git repository that a town works on.
type Rig struct {
	Name           string            `json:"name"`
	Town           string            `json:"town" doc:"Name of the town."`
	TownID         string            `json:"town_id"`
	Prefix         string            `json:"prefix" doc:"Of its beads' ids."`
	URL            string            `json:"url"`
	Target         string            `json:"target"`
	Gates          []Gate            `json:"gates"`
	Settings       map[string]string `json:"settings,omitempty"`
	AllowHosts     []string          `json:"allow_hosts,omitempty" doc:"Hosts that its agents and gates may reach through the server: the setting network.allow."`
	Exposed        []string          `json:"exposed,omitempty" doc:"Names of values that its agents and gates see in their environment, on purpose."`
	HasCredential  bool              `json:"has_credential"`
	Credential     *CredentialInfo   `json:"credential,omitempty" doc:"Only where one rig is shown."`
	UpdateWorktree bool              `json:"update_worktree,omitempty"`
	State          string            `json:"state" enum:"active,missing,removing" doc:"missing: imported, and not cloned yet."`
	CreatedAt      time.Time         `json:"created_at"`
	Tip            string            `json:"tip" doc:"Of the target, as last seen."`
	FetchedAt      time.Time         `json:"fetched_at,omitzero"`
	Push           RigPush           `json:"push"`
}

// RigPush says whether upstream takes pushes from the server. A rig that it refuses
// gets no work.
type RigPush struct {
	State     string    `json:"state" enum:"ok,refused,unasked" doc:"unasked: it is asked before the next work begins."`
	CheckedAt time.Time `json:"checked_at,omitzero" doc:"When it last took a push, or said that it would."`
	Error     string    `json:"error,omitempty" doc:"What it said."`
	NextTry   time.Time `json:"next_try,omitzero" doc:"Work that waits lets it be asked again then."`
	Subject   string    `json:"subject,omitempty" doc:"For gastown retry, to ask now."`
}

// AddRig adds a rig. The server clones the repository before it answers.
type AddRig struct {
	Name           string            `json:"name"`
	URL            string            `json:"url"`
	Prefix         string            `json:"prefix,omitempty" doc:"Of bead ids; default: made from the name."`
	Target         string            `json:"target,omitempty" doc:"Branch that work lands on; default main."`
	Gates          []Gate            `json:"gates,omitempty"`
	Settings       map[string]string `json:"settings,omitempty" doc:"Such as agent, provider, model, merge.mode."`
	GitToken       string            `json:"git_token,omitempty" doc:"A token, or user:password; the same as a credential of that kind."`
	Credential     *Credential       `json:"credential,omitempty"`
	InitEmpty      bool              `json:"init_empty,omitempty" doc:"Give an empty repository a first commit."`
	UpdateWorktree bool              `json:"update_worktree,omitempty" doc:"Allow a target that is checked out in a clean working copy on this machine."`
}

// EditRig changes a rig. Gates replaces all gates when it is given.
type EditRig struct {
	Set   map[string]string `json:"set,omitempty"`
	Unset []string          `json:"unset,omitempty"`
	Gates *[]Gate           `json:"gates,omitempty"`
	Allow []string          `json:"allow_hosts,omitempty" maxItems:"200" doc:"Hosts to add to the list of network.allow as it holds for the rig."`
	Deny  []string          `json:"deny_hosts,omitempty" maxItems:"200" doc:"Hosts to take off the list."`

	Credential     *Credential `json:"credential,omitempty" doc:"Replaces the rig's. It is tried before anything changes."`
	NoCredential   bool        `json:"no_credential,omitempty" doc:"Takes the rig's credential away."`
	ForgetHostKeys bool        `json:"forget_host_keys,omitempty" doc:"The next key of the ssh host is recorded anew."`

	Expose map[string]string `json:"expose,omitempty" doc:"Values by name that agents and gates of the rig see in their environment from their next start on. Agents can read and send them anywhere they can reach."`
	Hide   []string          `json:"hide,omitempty" doc:"Names of values that they see no longer."`
}

// RigPlace says in which town a rig is.
type RigPlace struct {
	Town   string `json:"town" doc:"Name of the town."`
	TownID string `json:"town_id"`
	Rig    string `json:"rig"`
	Prefix string `json:"prefix"`
}
