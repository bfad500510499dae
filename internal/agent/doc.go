// Package agent runs coding agents and speaks the Agent Client Protocol (ACP)
// with them: JSON-RPC, one message per line, over the agent's stdin and stdout.
//
// A Preset is data that says how to run one kind of agent. Start spawns it in
// its own process group, initialises it and opens one session; Prompt runs one
// turn; Cancel interrupts the turn; Close ends the process and everything that
// it left behind. The rest of the runner knows only the Session interface.
//
// What holds for every agent, however it behaves:
//
//   - OnEvent is called for one event at a time, in the order in which the
//     agent produced them; all updates of a turn arrive before Prompt returns.
//     A slow OnEvent slows the agent (its pipe fills), and loses nothing.
//   - Permission requests are answered from the preset's policy at once. What
//     the policy does not name is denied, and each answer is an event.
//   - The client offers neither files nor terminals: agents use their own tools.
//   - Memory is bounded: a line of more than 8 MiB ends the agent, texts of
//     events are capped at 64 KiB, and an agent that does not read its stdin
//     for 30 seconds is ended.
//   - When the agent's process ends, for whatever reason, its process group is
//     killed. On Linux processes that moved to another group or session are
//     found by a marker in their environment; on macOS only those that are
//     still descendants when Close is called.
//   - Done is closed only after all that, and Err says how it ended.
//
// The per-run secrets of a Spec (model key, MCP headers) are replaced in
// events, errors and the copy of stderr. A secret that an agent prints in
// pieces is not recognised.
package agent
