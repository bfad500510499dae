// Package agenttest has what tests of and with agents need: a conformance
// suite that every preset passes (Run), a tool server that records its calls
// (Tools), and a Session without a process (Session, Starter).
//
// The suite drives a real process. For an agent with a model the factory given
// to Run also starts a scripted model that makes the agent do the task.
package agenttest
