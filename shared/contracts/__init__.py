"""Payloads and results of every task: frozen, versioned, JSON only; a module per domain.

Payloads come from outside and are hostile until they have passed these models. A broker message stays under
``MAX_MESSAGE_BYTES``; media travels by storage key.
"""

from .base import (
    ID_PATTERN as ID_PATTERN,
    MAX_PICTURE_BYTES as MAX_PICTURE_BYTES,
    MAX_PICTURE_PIXELS as MAX_PICTURE_PIXELS,
    MAX_QUERY_CHARS as MAX_QUERY_CHARS,
    Box as Box,
    Contract as Contract,
    SearchedKind as SearchedKind,
    parse as parse,
)
from .inference import (
    DetectedFaces as DetectedFaces,
    DetectFaces as DetectFaces,
    EmbedImages as EmbedImages,
    EmbedTexts as EmbedTexts,
    EncodeTexts as EncodeTexts,
    FoundFace as FoundFace,
    ImageVectors as ImageVectors,
    PictureFaces as PictureFaces,
    RerankDocuments as RerankDocuments,
    RerankScores as RerankScores,
    TextVectors as TextVectors,
    TranscribeAudio as TranscribeAudio,
    TranscribedAudio as TranscribedAudio,
)
from .keys import (
    CheckKey as CheckKey,
    CreateKey as CreateKey,
    EndKey as EndKey,
    KeyList as KeyList,
    KeyView as KeyView,
    ListKeys as ListKeys,
)
from .models import (
    DiscardModel as DiscardModel,
    ModelKind as ModelKind,
    ModelSamples as ModelSamples,
    ModelsState as ModelsState,
    SampleScenes as SampleScenes,
    SwitchModel as SwitchModel,
    SwitchView as SwitchView,
)
from .people import (
    AddPhoto as AddPhoto,
    CreatePerson as CreatePerson,
    EventList as EventList,
    EventView as EventView,
    FacePage as FacePage,
    FaceView as FaceView,
    JudgeFaces as JudgeFaces,
    ListEvents as ListEvents,
    ListFaces as ListFaces,
    ListPeople as ListPeople,
    MergePeople as MergePeople,
    PeoplePage as PeoplePage,
    PersonRef as PersonRef,
    PersonView as PersonView,
    PhotoList as PhotoList,
    PhotoRef as PhotoRef,
    PhotoView as PhotoView,
    RenamePerson as RenamePerson,
    SplitPerson as SplitPerson,
    UndoEvent as UndoEvent,
)
from .search import (
    Coverage as Coverage,
    GatherSearch as GatherSearch,
    Highlights as Highlights,
    KeyframeMatch as KeyframeMatch,
    PersonMatch as PersonMatch,
    RetrieverCoverage as RetrieverCoverage,
    ScreenMatch as ScreenMatch,
    SearchAnswer as SearchAnswer,
    SearchHit as SearchHit,
    SearchMode as SearchMode,
    SearchRetriever as SearchRetriever,
    SearchScenes as SearchScenes,
    SearchWeights as SearchWeights,
    WordSpan as WordSpan,
)
from .speech import Segment as Segment, Word as Word
from .videos import (
    FailurePage as FailurePage,
    FailureView as FailureView,
    ListedState as ListedState,
    ListFailures as ListFailures,
    ListScenes as ListScenes,
    ListVideos as ListVideos,
    MakeSubtitles as MakeSubtitles,
    ProcessVideo as ProcessVideo,
    Receipt as Receipt,
    RerunVideo as RerunVideo,
    ScenePage as ScenePage,
    SceneView as SceneView,
    StageStatus as StageStatus,
    Subtitles as Subtitles,
    UploadSlot as UploadSlot,
    UploadVideo as UploadVideo,
    VideoPage as VideoPage,
    VideoRef as VideoRef,
    VideoState as VideoState,
    VideoStatus as VideoStatus,
)
