// Package presence is who is present at the topics of several engines, its nodes, without a place where that is stored. It decides
// what nodes say to each other; a Net brings it there.
//
// Each node knows the members of all. A node numbers its joins and leaves and tells them to all; by its heartbeats others notice
// that they have missed one, or that they do not know it yet, and ask it for all that it has. When a node has not been heard for
// three heartbeats its members have left.
//
//	unknown --first packet--> asked --all of its members--> known --a number is missing--> asked
//	any state --bye, or three heartbeats without a packet--> unknown
package presence
