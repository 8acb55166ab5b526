// Package docs holds those of the documents here that the program itself prints.
package docs

import _ "embed"

// WorkerYAML is an example of worker.yaml with every setting, explained.
//
//go:embed worker.yaml
var WorkerYAML string
