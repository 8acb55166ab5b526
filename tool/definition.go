package tool

import "encoding/json"

// A Definition is what the model is told about a tool.
type Definition struct {
	Name        string
	Description string
	InputSchema json.RawMessage // a JSON schema of type object
}

// Definitions returns the built-in tools that run in a box, in the order in
// which they are offered to the model. The inputs are those of the public
// toolset agent_toolset_20260401.
func Definitions() []Definition {
	return []Definition{
		{
			Name: "bash",
			Description: "Runs a command in a bash shell that lives as long as the session: the current directory, " +
				"variables, functions and background jobs of one call are there in the next. Standard output and " +
				"standard error come back together, the last 100 KiB of them, followed by the exit code if it is not 0. " +
				"Commands have no terminal and an empty standard input, so use the non-interactive form of a program. " +
				"A command that runs out of time is killed and the shell starts afresh; start what should keep " +
				"running in the background, with its output sent to a file.",
			InputSchema: json.RawMessage(`{"type":"object","properties":{` +
				`"command":{"type":"string","description":"The command line to run. May be left out only with restart."},` +
				`"restart":{"type":"boolean","description":"Start a new shell first, ending everything the old one runs."},` +
				`"timeout_ms":{"type":"integer","description":"Milliseconds the command may take. Default 120000."}}}`),
		},
		{
			Name: "read",
			Description: "Reads a file. Text comes back as it is; images (PNG, JPEG, GIF, WebP, up to 5 MiB) and " +
				"PDF files (up to 20 MiB) come back so that you can look at them. Text files over 256 KiB must be " +
				"read in parts, with view_range.",
			InputSchema: json.RawMessage(`{"type":"object","properties":{` +
				`"file_path":{"type":"string","description":"The file, relative to the working directory or absolute within it."},` +
				`"view_range":{"type":"array","items":{"type":"integer"},"minItems":2,"maxItems":2,` +
				`"description":"First and last line wanted, counting from 1; a last line of -1 means the end of the file."}},` +
				`"required":["file_path"]}`),
		},
		{
			Name: "write",
			Description: "Writes a text file whole, replacing what it held and creating the directories it needs. " +
				"To change part of a file use edit.",
			InputSchema: json.RawMessage(`{"type":"object","properties":{` +
				`"file_path":{"type":"string","description":"The file, relative to the working directory or absolute within it."},` +
				`"content":{"type":"string","description":"Everything the file is to hold."}},` +
				`"required":["file_path","content"]}`),
		},
		{
			Name: "edit",
			Description: "Replaces a piece of text in a file of at most 256 KiB. The old text must match exactly, " +
				"white space included, and occur once unless replace_all is set; include lines around it to make it unique.",
			InputSchema: json.RawMessage(`{"type":"object","properties":{` +
				`"file_path":{"type":"string","description":"The file, relative to the working directory or absolute within it."},` +
				`"old_string":{"type":"string","description":"The text to replace."},` +
				`"new_string":{"type":"string","description":"The text to put in its place."},` +
				`"replace_all":{"type":"boolean","description":"Replace every occurrence. Default false."}},` +
				`"required":["file_path","old_string","new_string"]}`),
		},
		{
			Name: "glob",
			Description: "Lists files and directories whose path matches a pattern, the most recently changed first, " +
				"at most 200 of them.",
			InputSchema: json.RawMessage(`{"type":"object","properties":{` +
				`"pattern":{"type":"string","description":"A pattern relative to path, such as src/**/*.go; ** stands for any number of directories."},` +
				`"path":{"type":"string","description":"The directory to search. Default: the working directory."}},` +
				`"required":["pattern"]}`),
		},
		{
			Name: "grep",
			Description: "Searches the contents of files for a regular expression and lists the matching lines as " +
				"path:line:text, at most 100 KiB of them.",
			InputSchema: json.RawMessage(`{"type":"object","properties":{` +
				`"pattern":{"type":"string","description":"The regular expression, matched against each line."},` +
				`"path":{"type":"string","description":"The file or directory to search. Default: the working directory."}},` +
				`"required":["pattern"]}`),
		},
	}
}
