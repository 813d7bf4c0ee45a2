//! Pages in the batch, pushed through the networks in steps.
//!
//! One page of each class is under way at a time: the networks use every thread for one page, and a second page's maps would only take
//! memory. A person's page overtakes a folder's between two layers.

use std::sync::Arc;
use std::time::{Duration, Instant};

use ingle_engine::{
    Class, Encoding, EngineError, Finish, Model, ModelCard, Output, PageImage, PageText, Request, RequestId,
    STEP_TARGET, Step, Timings, Tokens,
};

use super::ctc::{self, Alphabet};
use super::detect::{Detection, Detector};
use super::files::Contents;
use super::orient::{Orientation, Orienter};
use super::reading::{Reading, Work};
use super::recognise::{Recogniser, Recognition};

use crate::pool::Pool;

/// Bytes that maps, strips and inputs of two pages under way take at most beside the weights, as measured on full pages.
const ACTIVATION_BYTES: u64 = 420 << 20;

/// Bytes of the loaded model: weights as they are held (packed, about as large as stored) and what pages need.
pub(crate) fn memory_bytes(card: &ModelCard) -> u64 {
    card.parameters * 4 + ACTIVATION_BYTES
}

/// The loaded networks.
pub(crate) struct Networks {
    detector: Detector,
    recogniser: Recogniser,
    orienter: Option<Orienter>,
    alphabet: Alphabet,
}

impl Networks {
    /// Builds them from the files' contents.
    ///
    /// # Errors
    /// [`EngineError::Model`] names the file and what is wrong with it.
    pub(crate) fn load(files: &Contents) -> Result<Self, EngineError> {
        let (name, bytes) = &files.detector;
        let detector = Detector::load(bytes, name)?;
        let (name, bytes) = &files.recogniser;
        let recogniser = Recogniser::load(bytes, name)?;
        let orienter = files.orienter.as_ref().map(|(name, bytes)| Orienter::load(bytes, name)).transpose()?;
        let alphabet = Alphabet::new(recogniser.characters().to_vec());
        Ok(Self { detector, recogniser, orienter, alphabet })
    }
}

/// A network at work on a page.
enum Running {
    Detection(Detection),
    Orientation(Orientation),
    Recognition(Recognition),
}

/// A page that has joined.
struct Page {
    id: RequestId,
    class: Class,
    /// None until its turn comes.
    reading: Option<Reading>,
    /// None once it is read.
    image: Option<PageImage>,
    running: Option<Running>,
    spent: Duration,
}

impl Page {
    /// Does one unit of work: prepares the networks' next input, or runs some layers. The text once there is nothing left to do.
    fn unit(&mut self, networks: &Networks) -> Result<Option<PageText>, EngineError> {
        let orients = networks.orienter.is_some();
        let image = &mut self.image;
        let reading = match &mut self.reading {
            Some(reading) => reading,
            none => {
                let image = image.take().expect("a page without a reading has its image still");
                none.insert(Reading::new(image, orients))
            }
        };
        let Some(running) = &mut self.running else {
            self.running = Some(match reading.work() {
                Work::Detect { values, width, height } => {
                    Running::Detection(networks.detector.start(&values, height, width)?)
                }
                Work::Orient { values, count } => {
                    let orienter = networks.orienter.as_ref();
                    let none = || EngineError::Compute("a page asks for a network that isn't there".into());
                    Running::Orientation(orienter.ok_or_else(none)?.start(&values, count)?)
                }
                Work::Recognise { values, count, width } => {
                    Running::Recognition(networks.recogniser.start(&values, count, width)?)
                }
                Work::Done(text) => return Ok(Some(text)),
            });
            return Ok(None);
        };
        let done = match running {
            Running::Detection(run) => run.step(STEP_TARGET),
            Running::Orientation(run) => run.step(STEP_TARGET),
            Running::Recognition(run) => run.step(STEP_TARGET),
        };
        if done {
            match running {
                Running::Detection(run) => reading.detected(run.result()),
                Running::Orientation(run) => {
                    let reversed: Vec<f32> = run.result().iter().map(|[_, reversed]| *reversed).collect();
                    reading.oriented(&reversed);
                }
                Running::Recognition(run) => {
                    let columns = run.result();
                    let steps: Vec<ctc::Step> =
                        columns.iter().flatten().map(|column| (column.class, column.probability)).collect();
                    reading.recognised(&steps, &networks.alphabet);
                }
            }
            self.running = None;
        }
        Ok(None)
    }
}

/// See the module's text.
pub(crate) struct OcrModel {
    card: ModelCard,
    networks: Networks,
    pool: Arc<Pool>,
    slots: u32,
    /// In the order in which they came.
    pages: Vec<Page>,
}

impl OcrModel {
    pub(crate) fn new(card: ModelCard, networks: Networks, pool: Arc<Pool>, slots: u32) -> Self {
        Self { card, networks, pool, slots: slots.max(1), pages: Vec::new() }
    }

    /// Works on the oldest page of the more urgent class.
    fn unit(&mut self, out: &mut Vec<Output>) {
        let interactive = self.pages.iter().position(|page| page.class == Class::Interactive);
        let at = interactive.unwrap_or(0);
        let Some(page) = self.pages.get_mut(at) else { return };
        let begun = Instant::now();
        let networks = &self.networks;
        let outcome = self.pool.run(|_| page.unit(networks));
        page.spent += begun.elapsed();
        let (id, spent) = (page.id, page.spent);
        match outcome {
            Ok(None) => {}
            Ok(Some(text)) => {
                self.pages.remove(at);
                out.push(Output::Page { id, page: text });
                out.push(Output::Done {
                    id,
                    finish: Finish::Stop,
                    text: String::new(),
                    text_offset: 0,
                    prompt_tokens: 0,
                    output_tokens: 0,
                    timings: Timings { prefill: spent, decode: Duration::ZERO },
                });
            }
            Err(error) => {
                self.pages.remove(at);
                out.push(Output::Failed { id, error });
            }
        }
    }
}

/// Pages have no tokens.
struct NoTokens;

impl Tokens for NoTokens {
    fn encode(&self, _text: &str) -> Result<Encoding, EngineError> {
        Err(EngineError::Input("this model reads pages (pp-ocrv4), it has no tokens for text".into()))
    }

    fn max_tokens(&self) -> usize {
        0
    }
}

impl Model for OcrModel {
    fn card(&self) -> &ModelCard {
        &self.card
    }

    fn tokens(&self) -> Arc<dyn Tokens> {
        Arc::new(NoTokens)
    }

    fn memory_bytes(&self) -> u64 {
        memory_bytes(&self.card)
    }

    fn free_slots(&self) -> u32 {
        self.slots.saturating_sub(u32::try_from(self.pages.len()).unwrap_or(u32::MAX))
    }

    fn join(&mut self, id: RequestId, class: Class, request: Request) -> Result<(), EngineError> {
        let Request::Ocr(request) = request else {
            return Err(EngineError::Input("this model reads pages, it neither embeds nor generates".into()));
        };
        request.validate()?;
        if self.pages.iter().any(|page| page.id == id) {
            return Err(EngineError::Input(format!("request {} is in the batch already", id.0)));
        }
        if self.free_slots() == 0 {
            return Err(EngineError::Full { slots: self.slots });
        }
        let image = Some(request.page);
        self.pages.push(Page { id, class, reading: None, image, running: None, spent: Duration::ZERO });
        Ok(())
    }

    fn leave(&mut self, id: RequestId) {
        self.pages.retain(|page| page.id != id);
    }

    fn step(&mut self, out: &mut Vec<Output>) -> Result<Step, EngineError> {
        let begun = Instant::now();
        while begun.elapsed() < STEP_TARGET && !self.pages.is_empty() {
            self.unit(out);
        }
        Ok(if self.pages.is_empty() { Step::Idle } else { Step::Busy })
    }
}
