package process

import "strings"

// Isolation implements sandbox.Driver.
func (d *Driver) Isolation() string {
	var lines []string
	if d.box == nil {
		lines = append(lines,
			"files: agents run as your own user, and can read and change whatever you can, the server's data and keys too",
			"processes: agents see this server and all that you run, and can end it",
			"network: agents use this machine's network")
		if d.noBox != "" {
			lines[0] += " (there are no boxes for them: " + strings.ReplaceAll(d.noBox, "\n", " ") + ")"
		}
		return strings.Join(append(lines, d.unbounded()...), "\n")
	}
	if !d.box.inner {
		lines = append(lines, "each other: bubblewrap works here, but not in itself; agents of a town can read the sandbox's token and each other's work")
	}
	if d.network {
		lines = append(lines, "network: agents use this machine's network, and reach what listens on it")
	}
	return strings.Join(append(lines, d.unbounded()...), "\n")
}

// unbounded says that agents can use up this machine, if they can.
func (d *Driver) unbounded() []string {
	if d.groups != nil {
		return nil
	}
	return []string{"memory, processors and processes: agents can use up this machine's (" + d.noGroups + ")"}
}

// Boxed reports whether new sandboxes are boxes, which see of this machine only
// what they are shown.
func (d *Driver) Boxed() bool { return d.box != nil }

// Nests reports whether bubblewrap works in new sandboxes, too, so that a runner can
// keep agents apart with it.
func (d *Driver) Nests() bool { return d.box != nil && d.box.inner }
