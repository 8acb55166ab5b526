// Package settings reads the YAML files that people write for the parts that run on
// their own machines: strictly, so that a misspelt name is an error with its line and
// not a setting left out, and with the units that people use.
//
// It knows no setting: what a file may say is a struct of the package whose file it is,
// and so is what the values mean. Start reading at [Parse].
package settings
