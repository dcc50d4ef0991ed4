//! The program; see the library for what its commands do.

use std::process::ExitCode;

use aspo_cli::backend::exit_on_error;
use aspo_cli::options::TrainArgs;
use aspo_cli::{compare, evaluate, generate, merge, out, pairs, segment, train, validate, weigh};
use clap::{CommandFactory, Parser, Subcommand};
use clap_complete::Shell;

/// Preference training of vision-language models, sentence by sentence.
#[derive(Parser)]
#[command(name = "aspo", version)]
struct Program {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Train(TrainArgs),
    /// Tells what a training will take: steps, memory, disk. Takes the options of `train`, and reads no weight.
    Plan(TrainArgs),
    Pairs(pairs::PairsArgs),
    Validate(validate::ValidateArgs),
    Evaluate(evaluate::EvaluateArgs),
    Generate(generate::GenerateArgs),
    Weigh(weigh::WeighArgs),
    Report(compare::ReportArgs),
    Merge(merge::MergeArgs),
    Segment(segment::SegmentArgs),
    /// Prints completions for a shell: `aspo completions bash > /etc/bash_completion.d/aspo`.
    Completions {
        /// Which shell
        shell: Shell,
    },
}

fn main() -> ExitCode {
    match Program::parse().command {
        Command::Train(args) => exit_on_error(train::run(args, &mut ())),
        Command::Plan(mut args) => {
            args.plan = true;
            exit_on_error(train::run(args, &mut ()));
        }
        Command::Pairs(args) => return exit_on_error(pairs::run(&args)),
        Command::Validate(args) => return validate::run(&args),
        Command::Evaluate(args) => exit_on_error(evaluate::run(&args)),
        Command::Generate(args) => exit_on_error(generate::run(&args)),
        Command::Weigh(args) => exit_on_error(weigh::run(&args)),
        Command::Report(args) => exit_on_error(compare::run(&args)),
        Command::Merge(args) => exit_on_error(merge::run(&args)),
        Command::Segment(args) => exit_on_error(segment::run(&args)),
        Command::Completions { shell } => {
            // In memory first: the writer of clap_complete panics where nobody reads.
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Program::command(), "aspo", &mut script);
            out::print(format_args!("{}", String::from_utf8_lossy(&script)));
        }
    }
    if out::interrupted() {
        return ExitCode::from(out::INTERRUPTED_CODE as u8);
    }
    ExitCode::SUCCESS
}
